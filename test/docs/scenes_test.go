package docs

import (
	"slices"
	"strings"
)

// A scene runs blocks of one page, in their order, in one shell and one directory, with a database, a Kafka and a receiver of webhooks of its own.
type scene struct {
	page  string
	first string // how the first block begins; the scene has the blocks of the page up to the next scene's
	// before sets up what the page assumes, and after checks the outcome. Both are shell code that uses the functions of prelude.sh.
	before, after string
	// values are pairs: a placeholder that a reader of the page has to replace, and what the scene writes in its place.
	values []string
}

// addresses are pairs: an address on the pages, and the variable that has the test's own.
var addresses = []string{
	"postgres://postgres@localhost:5432/shop?sslmode=disable", "$SHOP_URL",
	"localhost:9092", "$KAFKA",
	"localhost:9640", "$OUTBOX_LISTEN",
	"http://collector:4318", "http://127.0.0.1:1", // nobody: spans are dropped
}

var scenes = []scene{
	{
		page: "docs/start.md", first: "export DATABASE_URL",
		before: `export SHOP_URL=$DATABASE_URL; unset DATABASE_URL OUTBOX_CONFIG`,
		after: `
			until is delivered 1; do sleep 0.1; done
			shown order.created`,
	},
	{page: "docs/configuration.md", first: "outbox-cdc config example", before: "unset OUTBOX_CONFIG", after: "shown outbox.event.order"},
	{page: "docs/status.md", first: "outbox-cdc status", before: shop, after: "shown '2 dead letters of partner'"},
	{page: "docs/health.md", first: "curl", before: shop, after: `shown '"role": "leader"'`},
	{
		page: "docs/parked.md", first: "outbox-cdc events list", before: shop,
		values: []string{"discard --id <id>", "discard --id $large", "kill --id <id>", "kill --id $later", "<id>", "$refused", "'…'", "'a test'"},
		after: `
			test "$(wc -l <dead.jsonl)" = 2 # refused and large
			is discarded 1                  # large
			sql "select 1 from outbox_parked where event_id = '$later' and status = 'dead'" | grep -q 1`,
	},
	{
		page: "docs/parked.md", first: "outbox-cdc events list --status parked --sink partner     # how often",
		before: shop + `
			for _ in 1 2 3 4 5; do event order.refused >/dev/null; done # three of them die
			until dead 5 && parked 3; do sleep 0.1; done`,
		values: []string{"'…'", "'a test'"},
		after:  "shown 'killed: 1 event'",
	},
	{page: "docs/verify.md", first: "outbox-cdc verify", before: shop},
	{page: "docs/objectives.md", first: "outbox-cdc report", before: shop, after: "shown partner"},
	{page: "docs/tracing.md", first: "OTEL_EXPORTER", before: "outbox-cdc init"},
	{page: "docs/slot.md", first: "outbox-cdc resync --dry-run", before: shop + lost, after: "until is delivered 7; do sleep 0.1; done"},
	{
		page: "docs/slot.md", first: "outbox-cdc init --backlog",
		before: `
			outbox-cdc init
			event order.placed
			outbox-cdc destroy`,
		after: "until is delivered 2; do sleep 0.1; done",
	},
	{page: "docs/failover.md", first: "outbox-cdc resync", before: shop + lost, after: "until is delivered 7; do sleep 0.1; done"},
	{page: "docs/copies.md", first: "outbox-cdc resync", before: shop + moved, after: "is discarded 1"},
	{page: "docs/copies.md", first: "outbox-cdc init", before: shop + copied, after: "is discarded 1"},
	{
		page: "docs/copies.md", first: "outbox-cdc adopt",
		before: shop + `
			stop
			rename_database
			if outbox-cdc run; then false; fi
			runner=`,
		after: "outbox-cdc run",
	},
	{page: "docs/restore.md", first: "outbox-cdc resync", before: shop + moved, after: "outbox-cdc run; parked 1"},
	{page: "docs/upgrades.md", first: "outbox-cdc resync", before: shop + moved, after: "parked 1"},
}

// shop starts a connector and writes four events. The sink orders gets all of them. The sink partner gets one; one is parked for it, and two are
// its dead letters.
const shop = `
	outbox-cdc init
	outbox-cdc run
	fine=$(event order.placed) refused=$(event order.refused) large=$(event order.large) later=$(event order.later)
	until dead 2 && parked 1 && is delivered 5; do sleep 0.1; done
`

// lost drops the slot, and writes an event after that.
const lost = `
	stop
	sql "select pg_drop_replication_slot('$OUTBOX_SLOT')"
	event order.placed
`

// moved goes on in a copy of the database without a slot, as after a dump and restore. copied goes on in a copy while the original has its slot.
const (
	moved = `
	stop
	sql "select pg_drop_replication_slot('$OUTBOX_SLOT')"
	copy_database
`
	copied = `
	stop
	copy_database
	export OUTBOX_SLOT=${OUTBOX_SLOT}_copy
`
)

// assign gives each scene the blocks that it runs: those with commands and without a mark, from its first to that of the next scene of the page.
func assign(all []block) [][]block {
	of := make([][]block, len(scenes))
	current := -1
	for _, b := range all {
		if current >= 0 && scenes[current].page != b.page {
			current = -1
		}
		if !b.shell() || b.mark != "" {
			continue
		}
		if i := slices.IndexFunc(scenes[current+1:], func(s scene) bool { return s.page == b.page && strings.HasPrefix(b.text, s.first) }); i >= 0 {
			current += 1 + i
		}
		if current >= 0 {
			of[current] = append(of[current], b)
		}
	}
	return of
}

// commands are what a person types of a block.
func (s scene) commands(b block) string {
	text := b.text
	if b.lang == "console" {
		var typed strings.Builder
		for l := range strings.Lines(text) {
			if command, ok := strings.CutPrefix(l, "$ "); ok {
				typed.WriteString(command)
			}
		}
		text = typed.String()
	}
	return strings.NewReplacer(append(append([]string{}, s.values...), addresses...)...).Replace(text)
}
