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

  # The build's roles take minutes to arrive, and a build without them fails. So they come with the secrets, which are
  # there before any function is: somebody must put their values in first.
  depends_on = [
    google_project_service.api,
    google_project_iam_member.builder,
    google_artifact_registry_repository_iam_member.builder,
  ]
}
