output "urls" {
  description = "The functions' addresses. Callers post charges to `charge`, with an ID token whose audience is that address."
  value       = local.urls
}

output "webhook_url" {
  description = "The endpoint to register at Stripe, for checkout.session.completed and the payment_intent.* events that the quick start names; a second time with connect=true, and a secret of its own, if you charge on connected accounts."
  value       = "${local.urls.webhook}/"
}

output "console" {
  description = "How an operator opens their page: run this, and go to http://localhost:8080 until it is stopped. Only for those whom `operators` names."
  value       = "gcloud run services proxy ${google_cloudfunctions2_function.function["console"].name} --project=${var.project} --region=${var.region} --port=8080"
}

output "environment" {
  description = "Lines for a shell that give paidonce what the functions are told, but for the secrets: eval \"$(terraform output -raw environment)\". Whoever does there what moves a charge tells, and enqueues, as the functions do."
  value       = join("\n", [for variable in local.functions.reconcile.settings : "export ${variable}='${replace(local.settings[variable], "'", "'\\''")}'" if local.settings[variable] != null])
}

output "queues" {
  description = "Full names of the Cloud Tasks queues. A caller that asks by task adds its task to `charges`."
  value       = { for name, queue in google_cloud_tasks_queue.queue : name => queue.id }
}

output "database" {
  description = "Name of the Datastore-mode database that holds the ledger."
  value       = google_firestore_database.ledger.name
}

output "service_accounts" {
  description = "E-mail of each service account: the functions', `tasks`, `scheduler` and `builder`. Whoever applies this must be allowed to act as them."
  value = merge(
    { for name, account in google_service_account.function : name => account.email },
    { for name, account in google_service_account.caller : name => account.email },
    { builder = google_service_account.builder.email },
  )
}

output "put_secrets" {
  description = "One command a secret: type or pipe the value in, then Ctrl-D. The newline at its end does not count."
  value       = { for variable, secret in google_secret_manager_secret.secret : variable => "gcloud secrets versions add ${secret.secret_id} --project=${var.project} --data-file=-" }
}

output "ttl" {
  description = "Commands, once a database, that have Datastore delete dead letters and audit reports when their retention is over. Nothing relies on it. By hand, because in Datastore mode the provider's google_firestore_field is refused."
  value       = [for kind in ["AuditReport", "DeadLetter"] : "gcloud firestore fields ttls update expires_at --collection-group=${kind} --enable-ttl --database=${google_firestore_database.ledger.name} --project=${var.project}"]
}

output "pause" {
  description = "Commands that stop deliveries; `resume` in place of `pause` lets them go on. Set jobs_paused as well."
  value       = [for queue in google_cloud_tasks_queue.queue : "gcloud tasks queues pause ${queue.name} --project=${var.project} --location=${var.region}"]
}
