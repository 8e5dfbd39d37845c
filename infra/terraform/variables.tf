# --- Where -----------------------------------------------------------------------------------------------------------

variable "project" {
  description = "Id of the Google Cloud project that everything is made in."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "Write the project's id (not its number or title): 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of the functions, queues and jobs, such as europe-west1. Keep it near the database."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "Write a region such as europe-west1."
  }
}

variable "name" {
  description = "First part of the name of everything that is made, so that one project can hold several deployments."
  type        = string
  default     = "paidonce"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{3,17}[a-z0-9]$", var.name))
    error_message = "5 to 19 lower-case letters, digits and hyphens: a service account's id has 30 characters at most."
  }
}

variable "labels" {
  description = "Labels for everything that can carry some."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Keys and values are lower-case letters, digits, hyphens and underscores, 63 at most; a key begins with a letter."
  }
}

# --- What runs -------------------------------------------------------------------------------------------------------

variable "bundle" {
  description = "Path of the zip file with the functions' source, as `make bundle` writes it: main.py, with one entry point a function, and requirements.txt at its top."
  type        = string

  validation {
    condition     = endswith(var.bundle, ".zip")
    error_message = "Write the path of a zip file."
  }
}

variable "runtime" {
  description = "Python of the functions. The default is the one that the tests run on."
  type        = string
  default     = "python311"

  validation {
    condition     = can(regex("^python31[1-9]$", var.runtime))
    error_message = "The code needs Python 3.11 or later: write python311, python312 and so on."
  }
}

variable "scaling" {
  description = "What to change of a function's instance and concurrency budget, by the function's name. The budgets themselves, with their reasons, are in functions.tf."
  type = map(object({
    min_instances = optional(number)
    max_instances = optional(number)
    concurrency   = optional(number)
    memory        = optional(string)
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.scaling) : contains(["charge", "webhook", "reconcile", "notify", "portal", "console"], name)])
    error_message = "Write the names of functions: charge, webhook, reconcile, notify, portal, console."
  }
  validation {
    condition     = alltrue([for budget in values(var.scaling) : coalesce(budget.concurrency, 1) >= 1 && coalesce(budget.concurrency, 1) <= 1000])
    error_message = "concurrency is 1 to 1000 requests an instance."
  }
}

# --- Who may call ----------------------------------------------------------------------------------------------------

variable "callers" {
  description = "IAM members that may ask for charges and act on them, such as serviceAccount:shop@my-project.iam.gserviceaccount.com. The public is not one of them."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.callers : can(regex("^(serviceAccount|user|group|principal|principalSet):.+", member))])
    error_message = "Write members such as serviceAccount:shop@my-project.iam.gserviceaccount.com; allUsers and allAuthenticatedUsers may not charge anybody."
  }
}

variable "task_callers" {
  description = "IAM members that may ask for charges by task: they may add tasks to the charges queue, and have them carry the tasks' token."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.task_callers : can(regex("^(serviceAccount|user|group|principal|principalSet):.+", member))])
    error_message = "Write members such as serviceAccount:shop@my-project.iam.gserviceaccount.com; allUsers and allAuthenticatedUsers may not charge anybody."
  }
}

variable "operators" {
  description = "IAM members that may open the operator's page and act there, such as group:payments@example.com. With none, nobody can. Only members that have an e-mail address: it is what a charge keeps of who did something."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.operators : can(regex("^(user|group|serviceAccount):[^@]+@[^@]+$", member))])
    error_message = "Write members such as group:payments@example.com or user:me@example.com; allUsers and allAuthenticatedUsers are no operators."
  }
}

variable "charge_ingress" {
  description = "From where the charge function can be reached at all; IAM decides in any case. ALLOW_INTERNAL_ONLY: from this project's VPC networks, Cloud Tasks and Cloud Scheduler. ALLOW_ALL: also from callers elsewhere."
  type        = string
  default     = "ALLOW_INTERNAL_ONLY"

  validation {
    condition     = contains(["ALLOW_INTERNAL_ONLY", "ALLOW_INTERNAL_AND_GCLB", "ALLOW_ALL"], var.charge_ingress)
    error_message = "Write ALLOW_INTERNAL_ONLY, ALLOW_INTERNAL_AND_GCLB or ALLOW_ALL."
  }
}

# --- Durations: the relations are those of `Limits` in shared/policy.py ----------------------------------------------

variable "stripe_timeout_seconds" {
  description = "STRIPE_TIMEOUT: how long one call to Stripe may take."
  type        = number
  default     = 30

  validation {
    condition     = var.stripe_timeout_seconds >= 1 && var.stripe_timeout_seconds * 2 < floor(var.lease_seconds * 5 / 6)
    error_message = "Two calls to Stripe must fit into one run of a function, which may take 5/6 of lease_seconds."
  }
}

variable "lease_seconds" {
  description = "LEASE: how long a delivery has a charge to itself. A function's timeout is 5/6 of it, the dispatch deadline of a task 7/6."
  type        = number
  default     = 90

  validation {
    condition     = var.lease_seconds >= 18 && var.lease_seconds <= 1500 && var.lease_seconds == floor(var.lease_seconds)
    error_message = "18 to 1500 whole seconds: a task's dispatch deadline (7/6 of it) may be 15 s to 30 min."
  }
}

variable "quarantine_seconds" {
  description = "QUARANTINE: how long a PaymentIntent is watched after Stripe has saved a 500 under its key, before it is confirmed anew."
  type        = number
  default     = 900

  validation {
    condition     = var.quarantine_seconds > 0 && var.quarantine_seconds <= 86400
    error_message = "More than 0 and at most a day, which is how long Stripe keeps a key."
  }
}

variable "retry_schedule" {
  description = "RETRY_SCHEDULE: when a declined charge that asked for `retry: schedule` is tried again."
  type        = string
  default     = "1d,3d,5d,7d"

  validation {
    condition     = can(regex("^[0-9.]+(ms|s|m|h|d)( *, *[0-9.]+(ms|s|m|h|d))*$", var.retry_schedule))
    error_message = "Write durations such as 1d,3d,5d,7d."
  }
}

variable "ledger_generation" {
  description = "LEDGER_GENERATION: raise it by one after the database was restored from a backup; nothing charges until the ledger has been reopened."
  type        = number
  default     = 1

  validation {
    condition     = var.ledger_generation >= 1 && var.ledger_generation == floor(var.ledger_generation)
    error_message = "A whole number from 1 on."
  }
}

# --- Whom it tells ---------------------------------------------------------------------------------------------------

variable "mail" {
  description = "MAIL_FROM and OPERATOR_EMAIL: the sender of all mail, and who is told what an operator must mend. null: no mail, and no secret for SMTP_URL."
  type = object({
    from     = string
    operator = string
  })
  default = null

  validation {
    condition     = var.mail == null || can(regex("@", var.mail.from)) && can(regex("@", var.mail.operator))
    error_message = "Both are mail addresses."
  }
}

variable "outcome_url" {
  description = "OUTCOME_URL: where your own system hears of outcomes. null: nowhere."
  type        = string
  default     = null

  validation {
    condition     = var.outcome_url == null || can(regex("^https://", var.outcome_url))
    error_message = "An address that begins with https://."
  }
}

# --- Secrets ---------------------------------------------------------------------------------------------------------

variable "secret_versions" {
  description = "Which version of each secret the functions read, by the name of its variable; 1 where nothing is said. Put a new version in, raise its number here and apply: that restarts the functions with it, and lowering it goes back."
  type        = map(number)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.secret_versions) : contains(["STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRETS", "SIGNING_SECRETS", "SMTP_URL"], name)])
    error_message = "Write STRIPE_API_KEY, STRIPE_WEBHOOK_SECRETS, SIGNING_SECRETS or SMTP_URL."
  }
  validation {
    condition     = alltrue([for version in values(var.secret_versions) : version >= 1 && version == floor(version)])
    error_message = "Versions are numbered from 1 on."
  }
}

# --- The database ----------------------------------------------------------------------------------------------------

variable "database" {
  description = "Name of the database that holds the ledger. null: `name`. A restored ledger has a name of its own, beside the one that it was restored from: infra/RUNBOOK.md."
  type        = string
  default     = null

  validation {
    condition     = var.database == null || can(regex("^[a-z][a-z0-9-]{2,61}[a-z0-9]$", var.database))
    error_message = "4 to 63 lower-case letters, digits and hyphens, the first a letter, the last no hyphen. The default database of the project is not for this."
  }
  validation {
    # An empty database of generation 1 is a new ledger, which has forgotten every key; of a later one it stays closed.
    condition     = var.database == null || var.database == var.name || var.ledger_generation > 1
    error_message = "Only a restored ledger has another name than the deployment: raise ledger_generation with it."
  }
}

variable "database_location" {
  description = "Location of the database: a region, or a multi-region (nam5, eur3), which survives the loss of a region. It can never be changed. null: `region`."
  type        = string
  default     = null

  validation {
    condition     = var.database_location == null || can(regex("^(nam5|eur3|[a-z]+-[a-z]+[0-9]+)$", var.database_location))
    error_message = "Write a region such as europe-west1, or nam5 or eur3."
  }
}

variable "retention_days" {
  description = "RETENTION: how many days after it last changed an ended charge is kept whole; then what is personal in it is erased, and the rest stays for ever. At least the 120 days for which most banks let a customer dispute a payment."
  type        = number
  default     = 400

  validation {
    condition     = var.retention_days >= 120 && var.retention_days == floor(var.retention_days)
    error_message = "120 whole days or more."
  }
}

variable "deletion_protection" {
  description = "Keep the database and the secrets from being deleted. The charges in them are what stops a second charge: turn this off only to take a deployment down for good."
  type        = bool
  default     = true
}

# --- Queues and jobs -------------------------------------------------------------------------------------------------

variable "charge_dispatches_per_second" {
  description = "Deliveries that Cloud Tasks starts a second. A delivery makes about two requests, and Stripe takes some 100 a second of a live account (25 in test mode): at the default what waited through an outage comes back without meeting that limit, and callers have the rest."
  type        = number
  default     = 10

  validation {
    condition     = var.charge_dispatches_per_second > 0 && var.charge_dispatches_per_second <= 500
    error_message = "More than 0 and at most 500, which is Cloud Tasks' limit for a queue."
  }
}

variable "notice_dispatches_per_second" {
  description = "Notices that Cloud Tasks starts a second. Mail servers take offence sooner than Stripe."
  type        = number
  default     = 5

  validation {
    condition     = var.notice_dispatches_per_second > 0 && var.notice_dispatches_per_second <= 500
    error_message = "More than 0 and at most 500, which is Cloud Tasks' limit for a queue."
  }
}

variable "jobs_paused" {
  description = "Stop the sweep, the backfill and the audit, as while the database is being restored. The queues are paused by hand: `terraform output pause`."
  type        = bool
  default     = false
}

# --- Traces, metrics and alerts --------------------------------------------------------------------------------------

variable "telemetry" {
  description = "Send OpenTelemetry traces and metrics to Cloud Trace and Cloud Monitoring, which bill for them. Alerts and the dashboard need none of it: they count log lines."
  type        = bool
  default     = false
}


variable "notification_channels" {
  description = "Names of the Cloud Monitoring channels that alerts go to: projects/PROJECT/notificationChannels/NUMBER. With none, an alert is only seen in the console."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "Write names such as projects/my-project/notificationChannels/1234567890."
  }
}

variable "alert_thresholds" {
  description = "From when on somebody is told. old_charge_minutes: the age of a charge that still waits for the system, which is mostly over in seconds and never in more than a day. The others: how many in ten minutes."
  type = object({
    old_charge_minutes = optional(number, 60)
    unknown            = optional(number, 20)
    errors             = optional(number, 10)
    bad_signatures     = optional(number, 10)
  })
  default = {}

  validation {
    condition     = alltrue([for threshold in values(var.alert_thresholds) : threshold >= 0])
    error_message = "Thresholds are not negative."
  }
}
