# What is counted, and when somebody is told. All of it comes from the lines that the functions log (shared/log.py):
# `lines` below are such lines' messages, and the tests hold each to the code.

locals {
  services = join(" OR ", [for name in keys(local.functions) : "\"${var.name}-${name}\""])
  of_ours  = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=(${local.services})"

  # lines: the message, or one of several. where: what else must be true of it. labels: fields to tell apart by.
  # value: a number to keep the distribution of; without one, lines are counted.
  metrics = {
    decisions = {
      lines       = ["decided"]
      labels      = { status = "The status that the charge then had", seen = "What was seen at Stripe" }
      description = "Decisions about charges."
    }
    open_charge_age = {
      lines       = ["decided"]
      where       = "jsonPayload.status=(\"pending\" OR \"unknown\")"
      value       = "age_seconds"
      description = "Age in seconds of charges that still waited for the system after a delivery."
    }
    overdue_charge_age = {
      lines       = ["swept"]
      value       = "oldest_seconds"
      description = "Age in seconds of the oldest charge for the system that a sweep found overdue; 0: none."
    }
    sweeps = {
      lines       = ["swept"]
      description = "Sweeps that ended well."
    }
    audit_age = {
      lines       = ["the audit stands"]
      value       = "behind_seconds"
      description = "Seconds since the time up to which Stripe has been held against the ledger."
    }
    discrepancies = {
      lines       = ["a discrepancy was recorded", "a discrepancy found no room"]
      description = "What Stripe says and the ledger does not explain, or the other way round."
    }
    dead_letters = {
      lines       = ["a task can never work and was kept as a dead letter"]
      description = "Tasks that can never work."
    }
    unlisted_codes = {
      lines       = ["a code that no table lists"]
      description = "Answers of Stripe's with a code that shared/codes.py does not know."
    }
    bad_signatures = {
      lines       = ["an event came without a valid signature"]
      description = "Calls of the webhook without a valid signature."
    }
    errors = {
      lines       = []
      where       = "severity>=ERROR"
      description = "Log lines of severity ERROR: the functions' own, and requests answered 5xx."
    }
  }
}

# Cloud Run logs the address of every request by itself, and a customer's link is an address: whoever may read the log
# could open their page. So the request log of the portal is not kept at all. To leave out only what has a token would
# be to trust a pattern: every page of the portal is a link, a mail program or a browser may write one in its own way, and
# what the pattern misses is a link in the log. What is lost is little: Cloud Run's own metric counts the requests and
# how they were answered (it is on the dashboard), and our own lines say what was done, without a link.
# The console's request log is kept: its paths name charges, letters and audits, and an id opens nothing; what an operator
# looks for is posted, and so in no address. It tells when somebody looked, which no line of ours does.
# It works on the project's own log buckets. A sink of a folder or an organisation needs one of its own.
resource "google_logging_project_exclusion" "portal_requests" {
  project     = var.project
  name        = "${var.name}-portal-requests"
  description = "Requests of the customers' page: their addresses are the customers' links."
  filter      = "logName=\"projects/${var.project}/logs/run.googleapis.com%2Frequests\" AND resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.name}-portal\""

  depends_on = [google_project_service.api]
}

resource "google_logging_metric" "metric" {
  for_each = local.metrics

  project     = var.project
  name        = "${var.name}/${each.key}"
  description = each.value.description
  filter = join(" AND ", compact([
    local.of_ours,
    # A line that has nothing but its message may be kept as text.
    length(each.value.lines) == 0 ? "" : format("(jsonPayload.message=(%[1]s) OR textPayload=(%[1]s))", join(" OR ", [for line in each.value.lines : "\"${line}\""])),
    try(each.value.where, ""),
  ]))
  value_extractor  = can(each.value.value) ? "EXTRACT(jsonPayload.${each.value.value})" : null
  label_extractors = { for field in keys(try(each.value.labels, {})) : field => "EXTRACT(jsonPayload.${field})" }

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = can(each.value.value) ? "DISTRIBUTION" : "INT64"
    unit        = can(each.value.value) ? "s" : "1"

    dynamic "labels" {
      for_each = try(each.value.labels, {})

      content {
        key         = labels.key
        value_type  = "STRING"
        description = labels.value
      }
    }
  }

  dynamic "bucket_options" {
    for_each = can(each.value.value) ? ["seconds"] : []

    content {
      exponential_buckets { # 1 s to 12 days. A percentile is right to within a fifth.
        scale              = 1
        growth_factor      = 1.2
        num_finite_buckets = 76
      }
    }
  }

  depends_on = [google_project_service.api]
}

locals {
  window = "600s" # Ten minutes: no charge that waits for the system is left alone for longer.

  # More than `threshold` in ten minutes; for an age, its highest.
  alerts = {
    old_charge = {
      title     = "A charge is old and still waits for the system"
      metric    = "open_charge_age"
      threshold = var.alert_thresholds.old_charge_minutes * 60
      severity  = "ERROR"
      todo      = "Its outcome is unknown to us, and nobody has been told that it failed. Look for `decided` lines with a high age_seconds, and at Stripe's status page. It settles by itself once Stripe or the bank answers."
    }
    overdue_charge = {
      title     = "A charge is old and was found overdue by the sweep"
      metric    = "overdue_charge_age"
      threshold = var.alert_thresholds.old_charge_minutes * 60
      severity  = "ERROR"
      todo      = "Its task did not come. Is the charges queue paused, or its rate too low? Is the charge function failing?"
    }
    unknown = {
      title     = "Many outcomes are unknown"
      metric    = "decisions"
      where     = "metric.labels.status=\"unknown\""
      threshold = var.alert_thresholds.unknown
      severity  = "WARNING"
      todo      = "Stripe answers late, badly or not at all: see its status page. Everything is repeated under the same keys; there is nothing to do by hand."
    }
    blocked = {
      title     = "A charge is blocked"
      metric    = "decisions"
      where     = "metric.labels.status=\"blocked\""
      threshold = 0
      severity  = "ERROR"
      todo      = "Something must be mended before it can go on: read the charge (last_error, waiting_on). For `seen` = unauthorized it is the API key, and every charge waits."
    }
    discrepancy = {
      title     = "Stripe and the ledger disagree"
      metric    = "discrepancies"
      threshold = 0
      severity  = "CRITICAL"
      todo      = "Money may have moved that the ledger does not explain. The log line names the charge or the PaymentIntent; compare them at Stripe and refund what was paid twice."
    }
    dead_letter = {
      title     = "A task can never work"
      metric    = "dead_letters"
      threshold = 0
      severity  = "ERROR"
      todo      = "A caller sent a charge by task that is not valid. It is kept as a DeadLetter entity with the reason; nothing was charged. Mend the caller, and send it again under the same key."
    }
    unlisted_code = {
      title     = "Stripe said something that no table lists"
      metric    = "unlisted_codes"
      threshold = 0
      severity  = "WARNING"
      todo      = "The log line names the code. Meanwhile it counts as a decline about which the customer decides, or as what its HTTP status says; it is never retried by itself. Give it a row in shared/codes.py."
    }
    bad_signatures = {
      title     = "Events come without a valid signature"
      metric    = "bad_signatures"
      threshold = var.alert_thresholds.bad_signatures
      severity  = "WARNING"
      todo      = "Either somebody knocks at the webhook's door, or STRIPE_WEBHOOK_SECRETS lacks the secret of the endpoint (was it rolled?). Outcomes come late meanwhile, and are not lost."
    }
    errors = {
      title     = "The functions log errors"
      metric    = "errors"
      threshold = var.alert_thresholds.errors
      severity  = "ERROR"
      todo      = "See Error Reporting, and the lines of severity ERROR."
    }
    late_audit = {
      title     = "The audit is late"
      metric    = "audit_age"
      threshold = 2 * 24 * 3600 # It is due each day.
      severity  = "ERROR"
      todo      = "What Stripe says was paid is not being held against the ledger: money that nobody explains would not be noticed. `paidonce audit run` says what is in its way."
    }
  }
}

# A metric that was just made is not known to Cloud Monitoring for up to ten minutes: if the first apply ends with
# "Cannot find metric", apply again.
resource "google_monitoring_alert_policy" "alert" {
  for_each = local.alerts

  project               = var.project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = var.labels

  conditions {
    display_name = each.value.title

    condition_threshold {
      filter = join(" AND ", compact([
        "resource.type=\"cloud_run_revision\"",
        "metric.type=\"logging.googleapis.com/user/${google_logging_metric.metric[each.value.metric].name}\"",
        try(each.value.where, ""),
      ]))
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.threshold
      duration        = "0s"

      aggregations {
        alignment_period     = local.window
        per_series_aligner   = can(local.metrics[each.value.metric].value) ? "ALIGN_PERCENTILE_99" : "ALIGN_SUM"
        cross_series_reducer = can(local.metrics[each.value.metric].value) ? "REDUCE_MAX" : "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.todo
  }

  alert_strategy {
    auto_close = "3600s"
  }
}

# Silence is the one thing that no line tells of.
resource "google_monitoring_alert_policy" "no_sweep" {
  project               = var.project
  display_name          = "${var.name}: The sweep does not run"
  combiner              = "OR"
  severity              = "CRITICAL"
  enabled               = !var.jobs_paused
  notification_channels = var.notification_channels
  user_labels           = var.labels

  conditions {
    display_name = "No sweep has ended well for ten minutes"

    condition_absent {
      filter   = "resource.type=\"cloud_run_revision\" AND metric.type=\"logging.googleapis.com/user/${google_logging_metric.metric["sweeps"].name}\""
      duration = local.window

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_SUM"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Open charges whose task was lost are not taken up any more. See the job ${google_cloud_scheduler_job.job["sweep"].name} in Cloud Scheduler, and the log of the reconcile function."
  }
}

# --- The dashboard ---------------------------------------------------------------------------------------------------

locals {
  # title, what is shown, how its series are aligned and reduced, and by which label they are told apart.
  charts = [
    { title = "Decisions by the charge's status", metric = "decisions", by = ["metric.label.status"] },
    { title = "Decisions by what was seen at Stripe", metric = "decisions", by = ["metric.label.seen"] },
    { title = "Age of charges that wait for the system (s)", metric = "open_charge_age" },
    { title = "Oldest charge that a sweep found overdue (s)", metric = "overdue_charge_age" },
    { title = "Errors by function", metric = "errors", by = ["resource.label.service_name"] },
    { title = "Discrepancies", metric = "discrepancies" },
    { title = "Events without a valid signature", metric = "bad_signatures" },
    { title = "Sweeps", metric = "sweeps" },
  ]
  platform_charts = [
    {
      title   = "Tasks waiting, by queue"
      filter  = "resource.type=\"cloud_tasks_queue\" AND metric.type=\"cloudtasks.googleapis.com/queue/depth\" AND resource.label.queue_id=starts_with(\"${var.name}-\")"
      aligner = "ALIGN_MAX"
      by      = ["resource.label.queue_id"]
    },
    {
      title   = "Requests by function and answer"
      filter  = "resource.type=\"cloud_run_revision\" AND metric.type=\"run.googleapis.com/request_count\" AND resource.label.service_name=starts_with(\"${var.name}-\")"
      aligner = "ALIGN_RATE"
      by      = ["resource.label.service_name", "metric.label.response_code_class"]
    },
  ]

  all_charts = concat(
    [for chart in local.charts : {
      title   = chart.title
      filter  = "resource.type=\"cloud_run_revision\" AND metric.type=\"logging.googleapis.com/user/${google_logging_metric.metric[chart.metric].name}\""
      aligner = can(local.metrics[chart.metric].value) ? "ALIGN_PERCENTILE_99" : "ALIGN_SUM"
      reducer = can(local.metrics[chart.metric].value) ? "REDUCE_MAX" : "REDUCE_SUM"
      by      = try(chart.by, [])
    }],
    [for chart in local.platform_charts : merge(chart, { reducer = "REDUCE_SUM" })],
  )
}

resource "google_monitoring_dashboard" "dashboard" {
  project = var.project
  dashboard_json = jsonencode({
    displayName = var.name
    mosaicLayout = {
      columns = 12
      tiles = [for index, chart in local.all_charts : {
        xPos   = index % 2 * 6
        yPos   = floor(index / 2) * 4
        width  = 6
        height = 4
        widget = {
          title = chart.title
          xyChart = {
            dataSets = [{
              plotType = "LINE"
              timeSeriesQuery = {
                timeSeriesFilter = {
                  filter = chart.filter
                  aggregation = {
                    alignmentPeriod    = "60s"
                    perSeriesAligner   = chart.aligner
                    crossSeriesReducer = chart.reducer
                    groupByFields      = chart.by
                  }
                }
              }
            }]
          }
        }
      }]
    }
  })

  depends_on = [google_project_service.api]
}
