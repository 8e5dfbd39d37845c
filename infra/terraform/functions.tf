# The functions. One more of them is one more entry of `local.functions`; everything else follows from it.

data "google_project" "this" {
  project_id = var.project
}

locals {
  # Cloud Run gives every service an address that is known before the service is: so a function can be told its own
  # address, and the others', without a circle. It is also the audience that Cloud Run accepts in a token; that of a
  # cloudfunctions.net address, which has the function's name in its path, is not the one that shared/tasks.py asks for.
  urls = { for name in keys(local.functions) : name => "https://${var.name}-${name}-${data.google_project.this.number}.${var.region}.run.app" }

  # Every variable of the contract (shared/settings.py) that a deployment sets, but for the secrets. null: not set.
  settings = {
    GOOGLE_CLOUD_PROJECT = var.project
    DATASTORE_DATABASE   = google_firestore_database.ledger.name
    TASKS_LOCATION       = var.region
    CHARGE_QUEUE         = google_cloud_tasks_queue.queue["charges"].name
    NOTIFY_QUEUE         = google_cloud_tasks_queue.queue["notices"].name
    CHARGE_URL           = local.urls.charge
    NOTIFY_URL           = local.urls.notify
    PORTAL_URL           = local.urls.portal
    TASKS_INVOKER        = google_service_account.caller["tasks"].email
    OUTCOME_URL          = var.outcome_url
    MAIL_FROM            = try(var.mail.from, null)
    OPERATOR_EMAIL       = try(var.mail.operator, null)
    RETRY_SCHEDULE       = var.retry_schedule
    LEASE                = "${var.lease_seconds}s"
    QUARANTINE           = "${var.quarantine_seconds}s"
    STRIPE_TIMEOUT       = "${var.stripe_timeout_seconds}s"
    LEDGER_GENERATION    = tostring(var.ledger_generation)
    RETENTION            = "${var.retention_days}d"
  }

  # What any function reads that opens the ledger, and what it takes besides to move a charge forward.
  opens_ledger = ["GOOGLE_CLOUD_PROJECT", "DATASTORE_DATABASE", "LEDGER_GENERATION", "LEASE", "QUARANTINE", "STRIPE_TIMEOUT"]
  moves_charges = concat(local.opens_ledger, [
    "TASKS_LOCATION", "CHARGE_QUEUE", "CHARGE_URL", "NOTIFY_QUEUE", "NOTIFY_URL", "TASKS_INVOKER", "OUTCOME_URL", "RETRY_SCHEDULE",
    "MAIL_FROM", "OPERATOR_EMAIL",
  ])

  # callers: who may invoke it: an IAM member, "tasks" or "scheduler" (the accounts that their tokens name), or "public".
  # An instance mostly waits for Stripe, so one CPU serves many requests. max_instances is a budget and no lock: Cloud
  # Run may exceed it for a while, and nothing relies on it.
  functions = {
    charge = { # 10 x 32: twice what Stripe's limit lets finish, at two seconds a charge.
      description   = "Takes charges and carries them out."
      ingress       = var.charge_ingress
      callers       = concat(["tasks"], var.callers)
      settings      = concat(local.moves_charges, ["PORTAL_URL", "RETENTION"]) # Of dead letters.
      secrets       = ["STRIPE_API_KEY", "SIGNING_SECRETS"]                    # It signs the customer's links.
      queues        = ["charges", "notices"]
      max_instances = 10
      concurrency   = 32
    }
    webhook = { # Stripe sends a few events a charge, in bursts, and waits patiently.
      description   = "Takes Stripe's events; their signature is what lets them in."
      ingress       = "ALLOW_ALL"
      callers       = ["public"]
      settings      = local.moves_charges
      secrets       = ["STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRETS"]
      queues        = ["charges", "notices"]
      max_instances = 10
      concurrency   = 32
    }
    reconcile = { # One job a minute, each far shorter than that; two when they overlap.
      description   = "Sweeps, fills gaps, audits and erases."
      ingress       = "ALLOW_INTERNAL_ONLY"
      callers       = ["scheduler"]
      settings      = concat(local.moves_charges, ["RETENTION"])
      secrets       = ["STRIPE_API_KEY"]
      queues        = ["charges", "notices"]
      max_instances = 2
      concurrency   = 4
    }
    notify = { # The queue's rate is what limits it.
      description   = "Tells somebody something: by mail, or the caller's system."
      ingress       = "ALLOW_INTERNAL_ONLY"
      callers       = ["tasks"]
      settings      = concat(local.opens_ledger, ["CHARGE_URL", "PORTAL_URL", "OUTCOME_URL", "MAIL_FROM", "OPERATOR_EMAIL"])
      secrets       = concat(["STRIPE_API_KEY", "SIGNING_SECRETS"], var.mail == null ? [] : ["SMTP_URL"])
      queues        = []
      max_instances = 3
      concurrency   = 16
    }
    portal = { # Only customers whose card was declined come here.
      description   = "The customer's page; the signature of its links is what lets them in."
      ingress       = "ALLOW_ALL"
      callers       = ["public"]
      settings      = concat(local.moves_charges, ["PORTAL_URL"])
      secrets       = ["STRIPE_API_KEY", "SIGNING_SECRETS"]
      queues        = ["charges", "notices"]
      max_instances = 5
      concurrency   = 16
    }
    console = { # A few people, now and then. Each may wait for an instance to start.
      description   = "The operator's page; IAM lets in whom the variable operators names."
      ingress       = "ALLOW_ALL" # Operators come through a proxy on their own machines, wherever those are.
      callers       = var.operators
      settings      = concat(local.moves_charges, ["PORTAL_URL"]) # It acts on charges, and shows the customers' links.
      secrets       = ["STRIPE_API_KEY", "SIGNING_SECRETS"]
      queues        = ["charges", "notices"]
      max_instances = 2
      concurrency   = 16
    }
  }

  # The budgets, with what `scaling` changes of them.
  budgets = {
    for name, function in local.functions : name => {
      min_instances = coalesce(try(var.scaling[name].min_instances, null), 0)
      max_instances = coalesce(try(var.scaling[name].max_instances, null), function.max_instances)
      concurrency   = coalesce(try(var.scaling[name].concurrency, null), function.concurrency)
      memory        = coalesce(try(var.scaling[name].memory, null), "512Mi") # The imports take some 70 MiB, twice: gunicorn forks.
    }
  }

  function_timeout_seconds = floor(var.lease_seconds * 5 / 6) # `Limits.function_timeout`.
}

resource "google_cloudfunctions2_function" "function" {
  #checkov:skip=CKV_GCP_124:Stripe and customers come from anywhere, to the two functions that check signatures; operators, and callers where charge_ingress says so, come from anywhere too, and IAM decides.
  for_each = local.functions

  project     = var.project
  location    = var.region
  name        = "${var.name}-${each.key}" # In kebab case: so the Cloud Run service below it has the same name.
  description = each.value.description
  labels      = var.labels

  build_config {
    runtime           = var.runtime
    entry_point       = each.key
    service_account   = google_service_account.builder.id
    docker_repository = google_artifact_registry_repository.images.id

    source {
      storage_source {
        bucket = google_storage_bucket.source.name
        object = google_storage_bucket_object.bundle.name
      }
    }
  }

  service_config {
    service_account_email            = google_service_account.function[each.key].email
    ingress_settings                 = each.value.ingress
    timeout_seconds                  = local.function_timeout_seconds
    available_cpu                    = "1" # Less would allow one request at a time.
    available_memory                 = local.budgets[each.key].memory
    min_instance_count               = local.budgets[each.key].min_instances
    max_instance_count               = local.budgets[each.key].max_instances
    max_instance_request_concurrency = local.budgets[each.key].concurrency

    environment_variables = merge(
      { for variable in each.value.settings : variable => local.settings[variable] if local.settings[variable] != null },
      {
        THREADS          = tostring(local.budgets[each.key].concurrency) # Of gunicorn, which would serve four at a time.
        LOG_EXECUTION_ID = "false"                                       # Our lines carry the trace; otherwise the platform sets this to true.
      },
      var.telemetry ? {
        OTEL_EXPORTER_OTLP_ENDPOINT = "https://telemetry.googleapis.com"
        OTEL_SERVICE_NAME           = "${var.name}-${each.key}"
        OTEL_RESOURCE_ATTRIBUTES    = "cloud.provider=gcp,cloud.platform=gcp_cloud_run,cloud.region=${var.region}" # Without a place, metrics are refused.
      } : {},
    )

    dynamic "secret_environment_variables" {
      for_each = toset(each.value.secrets)

      content {
        key        = secret_environment_variables.value
        project_id = var.project
        secret     = google_secret_manager_secret.secret[secret_environment_variables.value].secret_id
        version    = tostring(lookup(var.secret_versions, secret_environment_variables.value, 1))
      }
    }
  }

  lifecycle {
    precondition {
      condition     = local.budgets[each.key].max_instances >= local.budgets[each.key].min_instances
      error_message = "${each.key}: max_instances must not be less than min_instances."
    }
  }

  depends_on = [
    google_project_service.api,
    google_project_iam_member.builder,
    google_artifact_registry_repository_iam_member.builder,
    google_project_iam_member.ledger,
    google_secret_manager_secret_iam_member.reader,
  ]
}

# --- The source ------------------------------------------------------------------------------------------------------

resource "google_storage_bucket" "source" {
  #checkov:skip=CKV_GCP_62:It holds our own source, which only the build reads. Nothing in it is worth a log of readers.
  #checkov:skip=CKV_GCP_78:Objects are named by their content, so none is ever overwritten.
  project                     = var.project
  name                        = "${var.project}-${var.name}-source"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # It holds nothing that `make bundle` could not write again.
  labels                      = var.labels

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_object" "bundle" {
  bucket = google_storage_bucket.source.name
  name   = "bundle-${filesha256(var.bundle)}.zip" # Under a name that stays the same, new code would not be deployed.
  source = var.bundle

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:The images hold our own source and public packages, no secret and no data: Google's encryption is enough.
  project       = var.project
  location      = var.region
  repository_id = var.name
  description   = "The images that the functions are built into."
  format        = "DOCKER"
  labels        = var.labels

  cleanup_policies {
    id     = "keep-the-latest"
    action = "KEEP"

    most_recent_versions {
      keep_count = 5
    }
  }

  cleanup_policies {
    id     = "delete-the-rest"
    action = "DELETE"

    condition {
      older_than = "2592000s" # 30 days.
    }
  }

  depends_on = [google_project_service.api]
}

# --- The services of Google's that all this takes --------------------------------------------------------------------

resource "google_project_service" "api" {
  for_each = toset(concat(var.telemetry ? ["cloudtrace.googleapis.com", "telemetry.googleapis.com"] : [], [
    "artifactregistry.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudfunctions.googleapis.com",
    "cloudscheduler.googleapis.com",
    "cloudtasks.googleapis.com",
    "datastore.googleapis.com",
    "firestore.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
  ]))

  project            = var.project
  service            = each.key
  disable_on_destroy = false # Others in the project may use it.
}
