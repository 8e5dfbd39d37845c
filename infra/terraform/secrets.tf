# The secrets, without their values: those are put in by hand (`terraform output put_secrets`), so that no state, plan
# or log ever holds one. Two values may be given, separated by a comma, while one replaces the other.

locals {
  secrets = {
    for variable in toset(flatten([for function in values(local.functions) : function.secrets])) :
    variable => "${var.name}-${lower(replace(variable, "_", "-"))}"
  }
}

resource "google_secret_manager_secret" "secret" {
  for_each = local.secrets

  project             = var.project
  secret_id           = each.value
  labels              = var.labels
  deletion_protection = var.deletion_protection

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }

  depends_on = [google_project_service.api]
}
