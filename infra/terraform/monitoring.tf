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
      where       = "jsonPayload.status=(\"pending\" OR \"unknown\") AND jsonPayload.age_seconds>=60" # Every charge is pending for its first second.
      value       = "age_seconds"
      description = "Age in seconds of charges that still waited for the system after a delivery, a minute old or more."
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
    stuck = {
      lines       = ["a notice waits for long", "a notice reaches nobody", "an account cannot be audited", "a charge cannot be read"]
      description = "What does not go on by itself, and is logged once or now and then."
    }
    errors = {
      lines       = []
      where       = "severity>=ERROR"
      description = "Log lines of severity ERROR: the functions' own, and requests answered 5xx."
    }
  }

  filters = { for name, metric in local.metrics : name => join(" AND ", compact([
    local.of_ours,
    # A line that has nothing but its message may be kept as text.
    length(metric.lines) == 0 ? "" : format("(jsonPayload.message=(%[1]s) OR textPayload=(%[1]s))", join(" OR ", [for line in metric.lines : "\"${line}\""])),
    try(metric.where, ""),
  ])) }
}

# Cloud Run logs the address of every request by itself, and a customer's link is an address: whoever may read the log
# could open their page. So the request log of the portal is not kept at all. To leave out only what has a token would
# be to trust a pattern: every page of the portal is a link, a mail program or a browser may write one in its own way, and
# what the pattern misses is a link in the log. What is lost is little: Cloud Run's own metric counts the requests and
# how they were answered (it is on the dashboard), and our own lines say what was done, without a link.
# The console's request log is kept: its paths name charges, letters and audits, and an id opens nothing; what an operator
# looks for is posted, and so in no address. It tells when somebody looked, which no line of ours does.
# It works on the project's `_Default` sink and on no other: whoever has another sink, in the project or above it, gives
# that an exclusion of its own.
resource "google_logging_project_exclusion" "portal_requests" {
  project     = var.project
  name        = "${var.name}-portal-requests"
  description = "Requests of the customers' page: their addresses are the customers' links."
  filter      = "logName=\"projects/${var.project}/logs/run.googleapis.com%2Frequests\" AND resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.name}-portal\""

  depends_on = [google_project_service.api]
}

resource "google_logging_metric" "metric" {
  for_each = local.metrics

  project          = var.project
  name             = "${var.name}/${each.key}"
  description      = each.value.description
  filter           = local.filters[each.key]
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
  # How PromQL writes the names of the metrics.
  counters = { for name, metric in google_logging_metric.metric :
    name => "logging_googleapis_com:user_${replace(metric.name, "/[^a-zA-Z0-9_]/", "_")}"
  }

  # One line of `metric` for which `where` holds is enough; with `more_than`, it takes more than that in ten minutes of
  # those with `labels`. An age is held against its limit line by line, and never as a percentile or a mean: ordinary
  # charges, of which each is young, would hide an old one among them.
  alerts = {
    old_charge = {
      title    = "A charge is old and still waits for the system"
      metric   = "open_charge_age"
      where    = "jsonPayload.age_seconds>${var.alert_thresholds.old_charge_minutes * 60}"
      severity = "ERROR"
      todo     = "Its outcome is unknown to us, and nobody has been told that it failed. Look for `decided` lines with a high age_seconds, and at Stripe's status page. It settles by itself once Stripe or the bank answers."
    }
    overdue_charge = {
      title    = "A charge is old and was found overdue by the sweep"
      metric   = "overdue_charge_age"
      where    = "jsonPayload.oldest_seconds>${var.alert_thresholds.old_charge_minutes * 60}"
      severity = "ERROR"
      todo     = "Its task did not come. Is the charges queue paused, or its rate too low? Is the charge function failing?"
    }
    unknown = {
      title     = "Many outcomes are unknown"
      metric    = "decisions"
      labels    = "status=\"unknown\""
      more_than = var.alert_thresholds.unknown
      severity  = "WARNING"
      todo      = "Stripe answers late, badly or not at all: see its status page. Everything is repeated under the same keys; there is nothing to do by hand."
    }
    blocked = {
      title    = "A charge is blocked"
      metric   = "decisions"
      where    = "jsonPayload.status=\"blocked\""
      severity = "ERROR"
      todo     = "Something must be mended before it can go on: read the charge (last_error, waiting_on). For `seen` = unauthorized it is the API key, and every charge waits."
    }
    discrepancy = {
      title    = "Stripe and the ledger disagree"
      metric   = "discrepancies"
      severity = "CRITICAL"
      todo     = "Money may have moved that the ledger does not explain. The log line names the charge or the PaymentIntent; compare them at Stripe and refund what was paid twice."
    }
    dead_letter = {
      title    = "A task can never work"
      metric   = "dead_letters"
      severity = "ERROR"
      todo     = "A caller sent a charge by task that is not valid. It is kept as a DeadLetter entity with the reason; nothing was charged. Mend the caller, and send it again under the same key."
    }
    unlisted_code = {
      title    = "Stripe said something that no table lists"
      metric   = "unlisted_codes"
      severity = "WARNING"
      todo     = "The log line names the code. Meanwhile it counts as a decline about which the customer decides, or as what its HTTP status says; it is never retried by itself. Give it a row in shared/codes.py."
    }
    bad_signatures = {
      title     = "Events come without a valid signature"
      metric    = "bad_signatures"
      more_than = var.alert_thresholds.bad_signatures
      severity  = "WARNING"
      todo      = "Either somebody knocks at the webhook's door, or STRIPE_WEBHOOK_SECRETS lacks the secret of the endpoint (was it rolled?). Outcomes come late meanwhile, and are not lost."
    }
    errors = {
      title     = "The functions log errors"
      metric    = "errors"
      more_than = var.alert_thresholds.errors
      severity  = "ERROR"
      todo      = "See Error Reporting, and the lines of severity ERROR."
    }
    stuck = {
      title    = "Something does not go on by itself"
      metric   = "stuck"
      severity = "ERROR"
      todo     = "A notice that nobody takes, an account that cannot be audited, or a charge that cannot be read: the line says which. No count of errors would show it."
    }
    late_audit = {
      title    = "The audit is late"
      metric   = "audit_age"
      where    = "jsonPayload.behind_seconds>${2 * 24 * 3600}" # It is due each day.
      severity = "ERROR"
      todo     = "What Stripe says was paid is not being held against the ledger: money that nobody explains would not be noticed. `paidonce audit run` says what is in its way."
    }
  }
}

# None of them asks whether its metric is there: Cloud Monitoring gets to know a new one minutes after it was made, and
# would refuse the alert until then.
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

    dynamic "condition_matched_log" {
      for_each = can(each.value.more_than) ? [] : [each.value]

      content {
        filter = join(" AND ", compact([local.filters[each.value.metric], try(each.value.where, "")]))
      }
    }

    dynamic "condition_prometheus_query_language" {
      for_each = can(each.value.more_than) ? [each.value] : []

      content {
        query                     = "sum(increase(${local.counters[each.value.metric]}{${join(",", compact(["monitored_resource=\"cloud_run_revision\"", try(each.value.labels, "")]))}}[10m])) > ${each.value.more_than}"
        disable_metric_validation = true
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.todo
  }

  alert_strategy {
    auto_close = "3600s"

    dynamic "notification_rate_limit" {                     # For a line it must be given, and for a count it must not.
      for_each = can(each.value.more_than) ? [] : ["3600s"] # What is not mended is logged again every few minutes.

      content {
        period = notification_rate_limit.value
      }
    }
  }

  depends_on = [google_project_service.api]
}

# Silence is the one thing that no line tells of. It rings for a sweep that has stopped and for one that has never run
# alike, whether the metric then has zeros or nothing: a condition for absence rings only after there has been something.
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

    condition_prometheus_query_language {
      query                     = "(sum(increase(${local.counters["sweeps"]}{monitored_resource=\"cloud_run_revision\"}[10m])) or vector(0)) < 1"
      duration                  = "300s" # So long lines may take to be counted, and the first sweep to come.
      disable_metric_validation = true
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
    { title = "Age of charges that wait for the system for a minute or more (s)", metric = "open_charge_age" },
    { title = "Oldest charge that a sweep found overdue (s)", metric = "overdue_charge_age" },
    { title = "Errors by function", metric = "errors", by = ["resource.label.service_name"] },
    { title = "Discrepancies", metric = "discrepancies" },
    { title = "Seconds since the time up to which was audited", metric = "audit_age" },
    { title = "Tasks that can never work", metric = "dead_letters" },
    { title = "Codes that no table lists", metric = "unlisted_codes" },
    { title = "What does not go on by itself", metric = "stuck" },
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
