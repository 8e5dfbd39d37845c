# The least that works: no mail, and the defaults for all else. Callers may be anywhere, and IAM lets only them in.

terraform {
  required_providers {
    google = {
      source = "hashicorp/google"
    }
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
  description = "Region of everything."
  type        = string
  default     = "europe-west1"
}

variable "callers" {
  description = "IAM members that may ask for charges, such as user:me@example.com. Without a default: an apply that was not told them would shut them out."
  type        = list(string)
}

variable "operators" {
  description = "IAM members that may open the operator's page, such as user:me@example.com."
  type        = list(string)
  default     = []
}

module "paidonce" {
  source = "../.."

  project        = var.project
  region         = var.region
  bundle         = "${path.module}/../../../../dist/paidonce.zip"
  callers        = var.callers
  operators      = var.operators
  charge_ingress = "ALLOW_ALL"
}

output "charge_url" {
  description = "Where to post charges."
  value       = module.paidonce.urls.charge
}

output "webhook_url" {
  description = "Where Stripe shall send its events."
  value       = module.paidonce.webhook_url
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
