# The ledger. What is in here is what stops a second charge.

resource "google_firestore_database" "ledger" {
  project     = var.project
  name        = coalesce(var.database, var.name)
  location_id = coalesce(var.database_location, var.region)
  type        = "DATASTORE_MODE"

  # Each write is one commit, conditional on the version that was read. With OPTIMISTIC it fails at once when another
  # came first; with PESSIMISTIC a client that died could keep the others waiting for a minute.
  concurrency_mode            = "OPTIMISTIC"
  app_engine_integration_mode = "DISABLED"

  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_ENABLED" # Seven days, to the minute.
  delete_protection_state           = var.deletion_protection ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  deletion_policy                   = var.deletion_protection ? "ABANDON" : "DELETE"

  depends_on = [google_project_service.api]
}

resource "google_firestore_backup_schedule" "daily" {
  project   = var.project
  database  = google_firestore_database.ledger.name
  retention = "604800s" # Seven days.

  daily_recurrence {}
}

resource "google_firestore_backup_schedule" "weekly" {
  project   = var.project
  database  = google_firestore_database.ledger.name
  retention = "8467200s" # 98 days, the longest there is.

  weekly_recurrence {
    day = "SUNDAY"
  }
}

locals {
  # Every query of shared/store.py is answered by an index that Datastore keeps of each property by itself, so there is
  # nothing here. A query that needs a composite index gets an entry: name = [kind, [[property, order], ...]].
  composite_indexes = {}
}

resource "google_firestore_index" "composite" {
  for_each = local.composite_indexes

  project     = var.project
  database    = google_firestore_database.ledger.name
  collection  = each.value[0]
  api_scope   = "DATASTORE_MODE_API"
  query_scope = "COLLECTION_RECURSIVE"
  density     = "SPARSE_ALL"

  dynamic "fields" {
    for_each = each.value[1]

    content {
      field_path = fields.value[0]
      order      = fields.value[1]
    }
  }
}
