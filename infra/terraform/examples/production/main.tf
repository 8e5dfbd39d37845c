# As one would run it: the state in a bucket, a database that survives the loss of a region, mail, alerts, instances
# that are always there, callers from elsewhere.

terraform {
  required_providers {
    google = {
      source = "hashicorp/google"
    }
  }

  backend "gcs" {
    prefix = "paidonce" # terraform init -backend-config=bucket=YOUR-STATE-BUCKET
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

variable "project" {
  description = "Id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region, within the database's multi-region."
  type        = string
  default     = "europe-west1"
}

variable "callers" {
  description = "IAM members that may ask for charges."
  type        = list(string)
}

variable "task_callers" {
  description = "IAM members that may ask for charges by task."
  type        = list(string)
  default     = []
}

variable "operators" {
  description = "IAM members that may open the operator's page, such as group:payments@example.com."
  type        = list(string)
}

variable "bundle" {
  description = "Path of the zip file that `make bundle` wrote."
  type        = string
}

variable "secret_versions" {
  description = "Which version of each secret is in use."
  type        = map(number)
  default     = {}
}

resource "google_monitoring_notification_channel" "operator" {
  display_name = "Paidonce operators"
  type         = "email"
  labels = {
    email_address = "payments-oncall@example.com"
  }
}

module "paidonce" {
  source = "../.."

  project = var.project
  region  = var.region
  bundle  = var.bundle
  labels  = { team = "payments" }

  callers        = var.callers
  task_callers   = var.task_callers
  operators      = var.operators
  charge_ingress = "ALLOW_ALL"

  database_location = "eur3"
  secret_versions   = var.secret_versions

  mail = {
    from     = "Example Shop <billing@example.com>"
    operator = "payments-oncall@example.com"
  }
  outcome_url = "https://shop.example.com/paidonce/outcomes"

  scaling = {
    charge = { min_instances = 1, max_instances = 20 } # Nobody waits for a cold start at the till.
  }

  telemetry             = true
  notification_channels = [google_monitoring_notification_channel.operator.id]
  alert_thresholds      = { old_charge_minutes = 30 }
}

output "urls" {
  description = "The functions' addresses."
  value       = module.paidonce.urls
}

output "charge_url" {
  description = "Where to post charges."
  value       = module.paidonce.urls.charge
}

output "webhook_url" {
  description = "Where Stripe shall send its events."
  value       = module.paidonce.webhook_url
}

output "queues" {
  description = "The queues, for callers that ask by task."
  value       = module.paidonce.queues
}

output "console" {
  description = "How to open the operator's page."
  value       = module.paidonce.console
}

output "environment" {
  description = "What paidonce is to be told, in a shell."
  value       = module.paidonce.environment
}

output "put_secrets" {
  description = "How to put the secrets in."
  value       = module.paidonce.put_secrets
}

output "ttl" {
  description = "How to have what may be deleted deleted in time."
  value       = module.paidonce.ttl
}

output "pause" {
  description = "How to stop deliveries."
  value       = module.paidonce.pause
}
