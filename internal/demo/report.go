package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// sinks is how many destinations each event has: Kafka, Redis and the receiver of webhooks.
const sinks = 3

// summary says what became of everything that was committed before the demo was told to end.
type summary struct {
	Seconds      float64 `json:"seconds"`
	Transactions int     `json:"transactions"` // of the shop
	Committed    int     `json:"committed"`    // events
	Own          int     `json:"own"`          // of them a person's
	Arrived      int     `json:"arrived"`
	Missing      int     `json:"missing"` // in all destinations together
	Repeated     int     `json:"repeated"`
	Misordered   int     `json:"misordered"` // behind a later one of their aggregate
	Unrecorded   int     `json:"unrecorded"` // without a row in the ledger that says delivered
	Redis        int     `json:"redis"`      // arrived there
	Webhooks     int     `json:"webhooks"`   // arrived, with a valid signature
	Unsigned     int     `json:"unsigned"`   // webhooks without one
	RolledBack   int     `json:"rolled_back"`
	Phantoms     int     `json:"phantoms"` // rolled back, and arrived
	Kills        int     `json:"kills"`    // of Kafka, PostgreSQL or the connector, by --chaos
	// Milliseconds from the commit's time, which is taken before it waits for the disk, to the consumer.
	P50 int64 `json:"latency_p50_ms"`
	P99 int64 `json:"latency_p99_ms"`
	Max int64 `json:"latency_max_ms"`
}

// settle returns the ids of everything that is committed by now, and waits until all of it has arrived. After settleTimeout it
// gives up waiting.
func (d *demo) settle(work context.Context) ([]string, error) {
	rows, err := d.shop.conn.Query(work, "select id::text from event_outbox")
	if err != nil {
		return nil, err
	}
	owed, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(settleTimeout)
	defer timeout.Stop()
	for {
		redis, webhooks, err := d.others.arrived(owed)
		if err != nil {
			return nil, err
		}
		if d.arrivals.missing(owed) == 0 && redis == len(owed) && webhooks == len(owed) {
			return owed, nil
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return owed, nil // the summary counts what is missing
		case <-work.Done():
			return nil, context.Cause(work)
		}
	}
}

// report compares outbox, ledger and what the consumer saw. The connector has ended.
func (d *demo) report(work context.Context, s *shop, owed []string, took time.Duration) error {
	sum := summary{
		Seconds: took.Seconds(), Transactions: s.transactions, Committed: len(owed), RolledBack: len(s.rolledBack), Kills: d.kills,
	}
	// The ledger knows the order of the commits.
	rows, err := s.conn.Query(work, `select e.id::text, e.aggregate_type, e.aggregate_id, count(distinct l.processor_id) = $2
		from event_outbox e left join outbox_delivery_log l on l.event_id = e.id and l.status = 'delivered'
		where e.id = any($1::uuid[])
		group by e.id, l.commit_lsn, l.tx_index
		order by l.commit_lsn, l.tx_index`, owed, sinks)
	if err != nil {
		return err
	}
	a := &d.arrivals
	a.mu.Lock()
	defer a.mu.Unlock()
	type aggregate struct{ typ, id string }
	last := map[aggregate]int{}
	counted := map[string]bool{} // a delivery that was recorded twice gives two rows
	var id string
	var of aggregate
	var recorded bool
	_, err = pgx.ForEachRow(rows, []any{&id, &of.typ, &of.id, &recorded}, func() error {
		if counted[id] {
			return nil
		}
		counted[id] = true
		if !recorded {
			sum.Unrecorded++
		}
		n, arrived := a.first[id]
		if !arrived {
			sum.Missing++
			return nil
		}
		sum.Arrived++
		if n < last[of] {
			sum.Misordered++
		}
		last[of] = max(last[of], n)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read outbox and ledger: %w", err)
	}
	sum.Missing += len(owed) - len(counted) // rows that somebody deleted, and nobody can tell of
	for _, id := range s.rolledBack {
		if _, arrived := a.first[id]; arrived {
			sum.Phantoms++
		}
	}
	sum.Own, sum.Repeated = a.own, a.repeated
	if sum.Redis, sum.Webhooks, err = d.others.arrived(owed); err != nil {
		return err
	}
	d.others.mu.Lock()
	sum.Unsigned = d.others.unsigned
	d.others.mu.Unlock()
	sum.Missing += 2*len(owed) - sum.Redis - sum.Webhooks
	if len(a.latencies) > 0 {
		slices.Sort(a.latencies)
		sum.P50, sum.P99, sum.Max = quantile(a.latencies, 0.5), quantile(a.latencies, 0.99), a.latencies[len(a.latencies)-1]
	}
	if err := d.print(sum); err != nil {
		return fmt.Errorf("print the summary: %w", err)
	}
	return sum.verdict()
}

// quantile of sorted values, of which there is at least one.
func quantile(values []int64, q float64) int64 {
	return values[int(q*float64(len(values)-1)+0.5)]
}

func (d *demo) print(s summary) error {
	if d.JSON {
		return json.NewEncoder(d.Out).Encode(map[string]summary{"summary": s})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n", d.paint(bold, fmt.Sprintf("What became of everything that was committed in %.0f s", s.Seconds)))
	line := func(name string, n int, note string) {
		fmt.Fprintf(&b, "  %-15s %7d", name, n)
		if note != "" {
			fmt.Fprintf(&b, "   %s", d.paint(faint, note))
		}
		b.WriteString("\n")
	}
	line("committed", s.Committed, fmt.Sprintf("events in the outbox, %d of them yours", s.Own))
	line("in Kafka", s.Arrived, "")
	line("in Redis", s.Redis, "")
	line("as webhooks", s.Webhooks, "with a valid signature")
	line("in the ledger", s.Committed-s.Unrecorded, "as delivered to all three")
	line("rolled back", s.RolledBack, fmt.Sprintf("events that were never committed; %d of them arrived", s.Phantoms))
	if s.Kills > 0 {
		line("repeated", s.Repeated, "same id; a kill before the ledger knows may cause it")
	}
	if s.Arrived > 0 {
		fmt.Fprintf(&b, "  %-15s %4d ms   %s\n", "median latency", s.P50,
			d.paint(faint, fmt.Sprintf("until Kafka's consumer; p99 %d ms, longest %d ms", s.P99, s.Max)))
	}
	if s.verdict() == nil {
		good := "Nothing missing, nothing twice, in order per aggregate, all in the ledger."
		if s.Kills > 0 {
			good = "Nothing missing, in order per aggregate, all in the ledger."
		}
		fmt.Fprintf(&b, "%s\n", d.paint(green, good))
	}
	_, err := fmt.Fprint(d.Out, b.String())
	return err
}

// verdict is nil if everything is as promised. Only a kill may repeat an event.
func (s summary) verdict() error {
	var wrong []string
	repeated := s.Repeated
	if s.Kills > 0 {
		repeated = 0
	}
	for _, count := range []struct {
		n    int
		what string
	}{
		{s.Missing, "missing"},
		{repeated, "repeated"},
		{s.Misordered, "out of order"},
		{s.Unrecorded, "not in the ledger"},
		{s.Phantoms, "delivered although rolled back"},
		{s.Unsigned, "sent without a valid signature"},
	} {
		if count.n > 0 {
			wrong = append(wrong, fmt.Sprintf("%d %s", count.n, count.what))
		}
	}
	if wrong == nil {
		return nil
	}
	return errors.New("of the events are " + strings.Join(wrong, ", ") + "; a dead letter, which the log names, counts as missing")
}
