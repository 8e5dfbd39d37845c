# What calls the functions: Cloud Tasks, again and again until it is answered 2xx, and Cloud Scheduler. Both may call
# twice, and a call may go on after they have given it up: all of the functions bear that.

locals {
  # Cloud Tasks drops a task that has used up its attempts (and its duration, if there is one) without a word. A charge
  # that is recorded loses nothing by it: the sweep finds it by its `due_at` and makes it another task. A task of a
  # caller's whose charge could not be recorded yet, because Datastore was down or the ledger closed, has nobody else. So
  # the tasks of charges have no limit but Cloud Tasks' own, 31 days: longer than a charge stays open
  # (`EXPIRES_AFTER`), no longer than new charges are looked for first after a restore (`LIST_FOR`). How old a key may be
  # is the ledger's to say, and never a task's: past `KEY_HORIZON` a delivery asks Stripe and sends nothing. Nor do tasks
  # pile up: one of an older epoch than the sweep's ends at once.
  queues = {
    charges = {
      function              = "charge"
      dispatches_per_second = var.charge_dispatches_per_second
      # At ten a second, fifty are five seconds of Stripe's at each: beyond that it is Stripe that is slow. And never
      # more than half of what the function can take: the other half is for callers.
      concurrent_dispatches = min(50, max(1, floor(local.budgets.charge.max_instances * local.budgets.charge.concurrency / 2)))
      min_backoff_seconds   = 1   # `FIRST_WAIT`: most of Stripe's troubles are over in a second.
      max_backoff_seconds   = 300 # Within `LAST_WAIT`, and no longer than the sweep waits for a task (`SWEEP_AGAIN`).
      max_attempts          = -1
      max_retry_seconds     = null
    }
    notices = {
      function              = "notify"
      dispatches_per_second = var.notice_dispatches_per_second
      concurrent_dispatches = local.budgets.notify.max_instances * local.budgets.notify.concurrency
      min_backoff_seconds   = 10 # A mail server that is down stays down for longer.
      max_backoff_seconds   = 3600
      max_attempts          = 60
      max_retry_seconds     = 3 * 24 * 3600 # A weekend without a mail server. Nobody wants older news.
    }
  }
}

resource "google_cloud_tasks_queue" "queue" {
  for_each = local.queues

  project  = var.project
  location = var.region
  name     = "${var.name}-${each.key}"

  rate_limits {
    max_dispatches_per_second = each.value.dispatches_per_second
    max_concurrent_dispatches = each.value.concurrent_dispatches
  }

  retry_config {
    min_backoff        = "${each.value.min_backoff_seconds}s"
    max_backoff        = "${each.value.max_backoff_seconds}s"
    max_doublings      = 16 # Up to max_backoff, and not linearly before
    max_attempts       = each.value.max_attempts
    max_retry_duration = each.value.max_retry_seconds == null ? null : "${each.value.max_retry_seconds}s"
  }

  # Whatever address and token a task asks for, it goes to the queue's own function, and the token is good for nothing
  # else: else whoever may add a task could have a token of the tasks' account sent to themselves. What is not named here
  # stays the task's own: its path above all, which says of which charge it is.
  http_target {
    uri_override {
      scheme                    = "HTTPS"
      host                      = trimprefix(local.urls[each.value.function], "https://")
      uri_override_enforce_mode = "ALWAYS"
    }

    oidc_token {
      service_account_email = google_service_account.caller["tasks"].email
      audience              = "${local.urls[each.value.function]}/" # As shared/tasks.py has it.
    }
  }

  stackdriver_logging_config {
    sampling_ratio = 1.0
  }

  depends_on = [google_project_service.api]
}

locals {
  jobs = {
    sweep    = { path = "/", schedule = "* * * * *", retries = 0, description = "Takes up what nothing redelivers, and whatever else is due." } # The next one comes anyway.
    backfill = { path = "/backfill", schedule = "23 * * * *", retries = 3, description = "Asks Stripe for events that it could not deliver." }
    audit    = { path = "/audit", schedule = "41 4 * * *", retries = 3, description = "Compares what Stripe says was paid with the ledger, both ways." }
  }
}

resource "google_cloud_scheduler_job" "job" {
  for_each = local.jobs

  project          = var.project
  region           = var.region
  name             = "${var.name}-${each.key}"
  description      = each.value.description
  schedule         = each.value.schedule
  time_zone        = "Etc/UTC"
  attempt_deadline = "${var.lease_seconds}s" # Longer than the function may run, so that no answer is missed.
  paused           = var.jobs_paused

  retry_config {
    retry_count = each.value.retries
  }

  http_target {
    http_method = "POST"
    uri         = "${local.urls.reconcile}${each.value.path}"

    oidc_token {
      service_account_email = google_service_account.caller["scheduler"].email
      audience              = "${local.urls.reconcile}/" # As shared/tasks.py has it for tasks.
    }
  }

  depends_on = [google_cloud_run_service_iam_member.invoker]
}
