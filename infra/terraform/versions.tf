terraform {
  required_version = ">= 1.9" # A variable's validation may then refer to another variable.

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50" # What tests/terraform checks against.
    }
  }
}
