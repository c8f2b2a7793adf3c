# The shell functions of the scenes. A reader of a page has two terminals, and a scene has one shell, so "outbox-cdc run" is put into the
# background.
set -euo pipefail
runner=

# stop ends the connector that runs, which has to exit with 0. It is called before the commands that need a stopped connector, and at the end.
stop() {
  [ -n "$runner" ] || return 0
  kill -TERM "$runner"
  wait "$runner"
  runner=
}
trap 'code=$?; [ -z "$runner" ] || { kill -TERM "$runner"; wait "$runner" || true; }; [ $code = 0 ] || { echo "--- the end of the log:"; tail -n 20 run.log; } >&2; exit $code' EXIT

# outbox-cdc runs the binary as a person does, who answers yes to its questions, and ends --watch by Ctrl-C after a moment.
outbox-cdc() {
  local answer=()
  case "$*" in
  run*)
    stop
    "$BINARY" "$@" >>run.log 2>&1 &
    runner=$!
    until curl -sf -o /dev/null "http://$OUTBOX_LISTEN/readyz"; do
      kill -0 "$runner" || return 1
      sleep 0.05
    done
    return
    ;;
  *--watch*)
    timeout --preserve-status -s INT 2 "$BINARY" "$@"
    return
    ;;
  *--dry-run*) stop ;;
  resync* | adopt* | skip* | destroy*) answer=(--yes) && stop ;;
  init*) stop ;;
  "dlq discard"* | "dlq kill"* | "dlq purge"*) answer=(--yes) ;;
  esac
  "$BINARY" "$@" "${answer[@]}"
}

psql() { command psql --no-psqlrc --set ON_ERROR_STOP=1 "$@"; }
sql() { psql "$DATABASE_URL" -qAtc "$1"; }

# event TYPE writes an event and prints its id. Each type has an aggregate of its own, so that none waits for another.
event() { sql "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', '$1', '$1', '{\"total\": 99}') returning id"; }
is() { [ "$(sql "select count(*) from outbox_delivery_log where status = '$1'")" = "$2" ]; }
dead() { [ "$(sql "select count(*) from outbox_parked where status = 'dead'")" = "$1" ]; }
parked() { [ "$(sql "select count(*) from outbox_parked where status <> 'dead'")" = "$1" ]; }
shown() { grep -q -- "$1" shown.txt || { echo "not shown: $1" >&2; return 1; }; }

copy_database() {
  psql "$ADMIN_URL" -qc "create database ${DATABASE}_copy template $DATABASE"
  export DATABASE_URL=${DATABASE_URL/$DATABASE/${DATABASE}_copy}
}
rename_database() {
  psql "$ADMIN_URL" -qc "alter database $DATABASE rename to ${DATABASE}_copy" -c "create database $DATABASE"
  export DATABASE_URL=${DATABASE_URL/$DATABASE/${DATABASE}_copy}
}
