# Who is who, and what each may do. Additive members only, so that nobody else's roles in the project are touched.

# --- The functions ---------------------------------------------------------------------------------------------------

resource "google_service_account" "function" {
  for_each = local.functions

  project      = var.project
  account_id   = "${var.name}-${each.key}"
  display_name = "${var.name}: the ${each.key} function"

  depends_on = [google_project_service.api]
}

# roles/datastore.user could delete entities. Charges are never deleted, so nothing that runs is able to.
resource "google_project_iam_custom_role" "ledger" {
  project     = var.project
  role_id     = "${replace(var.name, "-", "_")}_ledger"
  title       = "${var.name}: ledger"
  description = "Read, insert and update entities of Datastore, and never delete one."
  permissions = [
    "datastore.entities.create", # Commit of an insert.
    "datastore.entities.get",    # Lookup.
    "datastore.entities.list",   # Queries.
    "datastore.entities.update", # Commit of an update.
  ]

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "ledger" {
  for_each = local.functions

  project = var.project
  role    = google_project_iam_custom_role.ledger.id
  member  = google_service_account.function[each.key].member

  condition {
    title      = "only the database ${google_firestore_database.ledger.name}"
    expression = "resource.type == \"firestore.googleapis.com/Database\" && resource.name == \"projects/${var.project}/databases/${google_firestore_database.ledger.name}\""
  }
}

# Traces and metrics are a project's: there is nothing narrower to grant. The last role lets the project be billed for it.
resource "google_project_iam_member" "telemetry" {
  for_each = { for pair in setproduct(
    keys(local.functions),
    var.telemetry ? ["roles/telemetry.tracesWriter", "roles/telemetry.metricsWriter", "roles/serviceusage.serviceUsageConsumer"] : [],
  ) : join("/", pair) => { function = pair[0], role = pair[1] } }

  project = var.project
  role    = each.value.role
  member  = google_service_account.function[each.value.function].member
}

resource "google_secret_manager_secret_iam_member" "reader" {
  for_each = { for pair in flatten([
    for name, function in local.functions : [for secret in function.secrets : { function = name, secret = secret }]
  ]) : "${pair.function}/${pair.secret}" => pair }

  project   = var.project
  secret_id = google_secret_manager_secret.secret[each.value.secret].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.function[each.value.function].member
}

locals {
  # Who adds tasks to which queue, by name of a function or as an IAM member.
  enqueuers = { for pair in concat(
    flatten([for name, function in local.functions : [for queue in function.queues : { who = name, queue = queue }]]),
    [for member in var.task_callers : { who = member, queue = "charges" }],
  ) : "${pair.who}/${pair.queue}" => pair }

  members = { for name, account in google_service_account.function : name => account.member }
}

resource "google_cloud_tasks_queue_iam_member" "enqueuer" {
  for_each = local.enqueuers

  project  = var.project
  location = var.region
  name     = google_cloud_tasks_queue.queue[each.value.queue].name
  role     = "roles/cloudtasks.enqueuer"
  member   = lookup(local.members, each.value.who, each.value.who)
}

# A task carries a token of the tasks' account: who makes tasks must be allowed to act as that account, and as no other.
resource "google_service_account_iam_member" "acts_as_tasks" {
  for_each = toset([for pair in values(local.enqueuers) : pair.who])

  service_account_id = google_service_account.caller["tasks"].name
  role               = "roles/iam.serviceAccountUser"
  member             = lookup(local.members, each.key, each.key)
}

# --- Who calls the functions -----------------------------------------------------------------------------------------

resource "google_service_account" "caller" {
  for_each = {
    tasks     = "whom the tasks' tokens name"
    scheduler = "whom the jobs' tokens name"
  }

  project      = var.project
  account_id   = "${var.name}-${each.key}"
  display_name = "${var.name}: ${each.value}"

  depends_on = [google_project_service.api]
}

locals {
  # Who is meant by the words that `local.functions` has for callers; what is none of them is an IAM member itself.
  callers = {
    public    = "allUsers"
    tasks     = google_service_account.caller["tasks"].member
    scheduler = google_service_account.caller["scheduler"].member
  }
}

resource "google_cloud_run_service_iam_member" "invoker" {
  for_each = { for pair in flatten([
    for name, function in local.functions : [for caller in function.callers : { function = name, caller = caller }]
  ]) : "${pair.function}/${pair.caller}" => pair }

  project  = var.project
  location = var.region
  service  = google_cloudfunctions2_function.function[each.value.function].name
  role     = "roles/run.invoker"
  member   = lookup(local.callers, each.value.caller, each.value.caller)
}

# `gcloud run services proxy` asks for the service's address before it connects. That takes run.services.get, which is not
# in roles/run.invoker: without this role only who may see more of the project could open the page in this way.
resource "google_cloud_run_service_iam_member" "operator" {
  for_each = toset(var.operators)

  project  = var.project
  location = var.region
  service  = google_cloudfunctions2_function.function["console"].name
  role     = "roles/run.viewer"
  member   = each.key
}

# --- Who builds them -------------------------------------------------------------------------------------------------

resource "google_service_account" "builder" {
  project      = var.project
  account_id   = "${var.name}-builder"
  display_name = "${var.name}: builds the functions"

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "builder" {
  for_each = {
    "roles/logging.logWriter" = "true"
    # The platform copies the source into a bucket of its own, which it makes with the first function.
    "roles/storage.objectViewer" = "resource.name.startsWith(\"projects/_/buckets/gcf-v2-sources-${data.google_project.this.number}-${var.region}\")"
  }

  project = var.project
  role    = each.key
  member  = google_service_account.builder.member

  dynamic "condition" {
    for_each = each.value == "true" ? [] : [each.value]

    content {
      title      = "only the functions' source"
      expression = condition.value
    }
  }
}

resource "google_artifact_registry_repository_iam_member" "builder" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.builder.member
}
