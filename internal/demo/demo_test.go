package demo

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// The demo says that nothing was lost: it has to notice if something is.
func TestReport(t *testing.T) {
	t.Parallel()
	const a, b, c = 0, 1, 2
	for name, test := range map[string]struct {
		arrived    []int
		rolledBack int
		recorded   string // condition on the event's type
		redis      int    // how many of the events Redis has
		want       string
	}{
		"all is well":               {[]int{c, a, b}, 0, "true", 3, ""},
		"missing":                   {[]int{a, c}, 0, "true", 3, "1 missing"},
		"missing in Redis":          {[]int{a, b, c}, 0, "true", 2, "1 missing"},
		"repeated":                  {[]int{a, b, a, c}, 0, "true", 3, "1 repeated"},
		"out of order":              {[]int{b, a, c}, 0, "true", 3, "1 out of order"},
		"unrecorded":                {[]int{a, b, c}, 0, "event_type <> 'b' or p < 3", 3, "1 not in the ledger"},
		"rolled back and delivered": {[]int{a, b, c}, 1, "true", 3, "1 delivered although rolled back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			var out bytes.Buffer
			shop := &shop{conn: pgtest.New(t).Conn(t)}
			others, err := startOthers(ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { others.close(context.WithoutCancel(ctx)) })
			d := &demo{Options: Options{Out: &out}, shop: shop, others: others}
			tx, err := shop.conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			events := []outbox.Event{
				{ID: outbox.NewID(), AggregateType: "order", AggregateID: "1", EventType: "a", Payload: []byte("1")},
				{ID: outbox.NewID(), AggregateType: "order", AggregateID: "1", EventType: "b", Payload: []byte("2")},
				{ID: outbox.NewID(), AggregateType: "order", AggregateID: "2", EventType: "c", Payload: []byte("3")},
			}
			if err := outbox.Insert(ctx, tx, events...); err != nil {
				t.Fatal(err)
			}
			// b is inserted last, and committed before c: the ledger tells.
			if _, err := tx.Exec(ctx, `insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at,
				commit_lsn, tx_index, epoch)
				select id, p, 1, 'delivered', now(), '0/10', ascii(event_type), 1 from event_outbox, generate_series(1, 3) p where `+test.recorded); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			for _, i := range test.arrived {
				d.arrivals.add(record(events[i].ID), time.Now())
			}
			for range test.rolledBack {
				id := outbox.NewID()
				shop.rolledBack = append(shop.rolledBack, id)
				d.arrivals.add(record(id), time.Now())
			}
			owed := []string{events[a].ID, events[b].ID, events[c].ID}
			for i, id := range owed {
				others.hooked[id] = true
				if i >= test.redis {
					continue
				}
				if _, err := others.redis.XAdd("outbox.event.order", "*", []string{"id", id}); err != nil {
					t.Fatal(err)
				}
			}
			err = d.report(ctx, shop, owed, time.Second)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), " are "+test.want+";") {
				t.Errorf("%v, want %q", err, test.want)
			}
			if boast := strings.Contains(out.String(), "Nothing missing"); boast != (test.want == "") {
				t.Errorf("it says: %s", out.String())
			}
		})
	}
}

func record(id string) *kgo.Record {
	return &kgo.Record{Timestamp: time.Now(), Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(id)}}}
}

func TestLatencyIsFromTheCommit(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var a arrivals
	a.expect("ours")
	r := record("ours")
	r.Timestamp = now.Add(-7 * time.Millisecond)
	if got := a.add(r, now); got.Milliseconds != 7 || got.Own {
		t.Errorf("%+v", got)
	}
	if got := a.add(record("another"), now); !got.Own {
		t.Errorf("%+v", got)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	values := []int64{1, 2, 3, 4, 100}
	if p50, p99 := quantile(values, 0.5), quantile(values, 0.99); p50 != 3 || p99 != 100 {
		t.Errorf("p50 %d, p99 %d", p50, p99)
	}
	if got := quantile([]int64{7}, 0.99); got != 7 {
		t.Errorf("of one value: %d", got)
	}
}

func TestFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text    string
		columns int
		want    string
	}{
		{"", 5, ""},
		{"abc", 3, "abc"},
		{"abcd", 3, "ab…"},
		{"abcd", 0, ""},
		{"{\"a\":\n\t1}", 20, `{"a":  1}`},
		{"\x1b[31mred\a", 20, " [31mred "},
		{"\xff\u202e", 20, "\ufffd "},
		{strings.Repeat("ż", 100), 10, strings.Repeat("ż", 9) + "…"},
	} {
		if got := fit(c.text, c.columns); got != c.want {
			t.Errorf("fit(%q, %d) = %q, want %q", c.text, c.columns, got, c.want)
		}
	}
}

// Of an error that is too long the end is told: there is the reason.
func TestCause(t *testing.T) {
	t.Parallel()
	const refused = `unavailable: stream "a": dial tcp 127.0.0.1:1: connect: connection refused; 2 parked, the oldest 0s ago`
	for _, c := range []struct {
		text    string
		columns int
		want    string
	}{
		{refused, 80, `stream "a": dial tcp 127.0.0.1:1: connect: connection refused`},
		{refused, 50, "dial tcp 127.0.0.1:1: connect: connection refused"},
		{refused, 20, "connection refused"},
		{refused, 10, "connectio…"},
		{refused, -1, ""},
		{"", 10, ""},
	} {
		if got := cause(c.text, c.columns); got != c.want {
			t.Errorf("cause in %d columns: %q, want %q", c.columns, got, c.want)
		}
	}
}

// What a person is told of an outage fits a terminal of 80 columns.
func TestStoriesFit(t *testing.T) {
	t.Parallel()
	d := &demo{others: &others{}, broker: &broker{}, connector: &connector{}}
	for _, name := range Breakable() {
		a := d.act(name)
		for _, text := range []string{"~~ " + a.begins, "~~ 99.9 s  " + a.ends} {
			if n := utf8.RuneCountInString(text); n > 80 {
				t.Errorf("%d columns: %s", n, text)
			}
		}
	}
}

// An event takes one line of the terminal, whatever its width is, and colours are where a terminal is.
func TestShow(t *testing.T) {
	t.Parallel()
	for _, columns := range []int{40, 80, 100, 200} {
		for _, colours := range []bool{false, true} {
			var out bytes.Buffer
			d := &demo{Options: Options{Out: &out, Screen: Screen{Colours: colours, Columns: func() int { return columns }}}}
			event := arrival{
				Topic: topics + "a-rather-long-type", Key: "0c5ab2c0-6a7c", EventType: "order.line.was.cancelled", ID: outbox.NewID(),
				Payload: strings.Repeat("{}", 100), Own: true,
			}
			if err := d.show(event); err != nil {
				t.Fatal(err)
			}
			line := strings.TrimSuffix(out.String(), "\n")
			if strings.Contains(line, "\x1b[") != colours {
				t.Errorf("colours %t: %q", colours, line)
			}
			line = strings.NewReplacer("\x1b["+string(green)+"m", "", "\x1b[0m", "").Replace(line)
			if got, want := utf8.RuneCountInString(line), max(min(columns, Widest), rowWidth); got != want {
				t.Errorf("%d columns on a terminal of %d, want %d: %q", got, columns, want, line)
			}
		}
	}
}
