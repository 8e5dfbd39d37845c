"""An emulator of Cloud Tasks that keeps the service's promises, on one machine.

Run it with `python -m infra.local.tasks`; README.md says what it promises and how to use it from any project.

Imports flow one way: `messages, retries, flow <- rules <- engine <- identity <- delivery <- dispatcher <- service, web
<- emulator <- __main__`. `retries`, `flow` and `rules` are pure; `engine` decides and keeps, in SQLite; only from
`delivery` on is there a network.
"""
