package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// expectation is what a scenario has to excuse.
type expectation struct {
	faults int               // kills and crashes: each may repeat what was not recorded
	resets int               // requests that a receiver has accepted and not answered: a client's library may repeat them by itself
	status map[string]string // of events whose terminal status is not delivered, by id, or by sink/id
	// How often a person has retried an event, by id, or by sink/id.
	retried map[string]int
}

// verify waits for the slot to pass everything, collects the evidence and has it checked.
func (w *world) verify(x expectation) {
	w.t.Helper()
	truth := w.truth()
	w.settled(truth)
	w.judge(truth, w.ledger(), x)
}

// settled waits until the slot has passed everything that was committed, and nothing is parked.
func (w *world) settled(truth []event) {
	w.t.Helper()
	w.settledWithin(time.Minute, truth)
}

func (w *world) settledWithin(patience time.Duration, truth []event) {
	w.t.Helper()
	if len(truth) == 0 {
		w.t.Fatal("nothing was committed, so nothing was tested")
	}
	w.passed(patience, truth[len(truth)-1].commitEnd)
	eventually(w.t, patience, "nothing parked", func() error {
		if n := w.parked(); n > 0 {
			return fmt.Errorf("%d deliveries are", n)
		}
		return nil
	})
}

// judge collects the rest of the evidence and has it checked.
func (w *world) judge(truth []event, ledger []outcome, x expectation) {
	w.t.Helper()
	w.judgeEvidence(w.evidence(truth, ledger, x))
}

// evidence collects the rest of the evidence.
func (w *world) evidence(truth []event, ledger []outcome, x expectation) evidence {
	w.t.Helper()
	samples := append(w.sampler.stop(), sample{
		slot:       w.confirmed(),
		checkpoint: ask[pglogrepl.LSN](w, "select confirmed_lsn from outbox_checkpoints where slot_name = $1", w.slot),
	})
	e := evidence{
		truth: truth, deliveries: map[string][]delivery{}, ledger: ledger, status: x.status, retried: x.retried, topics: w.topics,
		samples: samples, snapshots: w.snapshots, faults: x.faults, resets: x.resets, batch: w.batchSize, lanes: w.lanes,
	}
	for _, sink := range w.sinks {
		if sink["type"] == "composite" { // has neither events nor rows of its own
			continue
		}
		name := sink["name"].(string)
		e.deliveries[name] = w.received(sink["type"].(string))
	}
	return e
}

// judgeEvidence fails the test for what is wrong.
func (w *world) judgeEvidence(e evidence) {
	w.t.Helper()
	problems, summary := check(e)
	w.t.Log(summary)
	for i, p := range problems {
		if i == 20 {
			w.t.Errorf("and %d more", len(problems)-i)
			break
		}
		w.t.Error(p)
	}
}

// decoded is a row as test_decoding prints it. Columns go by their place: a scenario may rename them.
var decoded = regexp.MustCompile(`^table public\.event_outbox(?:_[0-9]+|_default)?: INSERT: [^ ]+\[uuid\]:'([^']*)' [^ ]+\[text\]:'((?:[^']|'')*)' [^ ]+\[text\]:'((?:[^']|'')*)' `)

// decodedPayload is looked for where the row is no longer in the table.
var decodedPayload = regexp.MustCompile(` payload\[json\]:'((?:[^']|'')*)' `)

// truth reads the committed events in commit order. Reading again gives the same and more: nothing is consumed.
func (w *world) truth() []event {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	payloads := map[string]string{}
	var id, text string
	rows, err := conn.Query(w.t.Context(), "select id::text, payload::text from event_outbox")
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&id, &text}, func() error { payloads[id] = text; return nil }); err != nil {
		w.t.Fatal(err)
	}
	// A transaction's rows come between its BEGIN and its COMMIT, whose LSN is the end of the commit record.
	rows, err = conn.Query(w.t.Context(), `select lsn, left(data, 4000) from pg_logical_slot_peek_changes($1, null, null, 'skip-empty-xacts', '1')
		where data like 'BEGIN%' or data like 'COMMIT%' or data ~ '^table public.event_outbox(_[0-9]+|_default)?: INSERT:'`, w.oracle)
	if err != nil {
		w.t.Fatal(err)
	}
	var all, open []event
	var lsn pglogrepl.LSN
	_, err = pgx.ForEachRow(rows, []any{&lsn, &text}, func() error {
		switch {
		case strings.HasPrefix(text, "BEGIN"):
			open = open[:0]
		case strings.HasPrefix(text, "COMMIT"):
			for i := range open {
				open[i].commitEnd = lsn
			}
			all = append(all, open...)
		default:
			m := decoded.FindStringSubmatch(text)
			if m == nil {
				return fmt.Errorf("test_decoding says %q", text)
			}
			unquote := strings.NewReplacer("''", "'")
			payload, found := payloads[m[1]]
			if !found {
				m := decodedPayload.FindStringSubmatch(text)
				if m == nil {
					return fmt.Errorf("no payload in %q", text)
				}
				payload = unquote.Replace(m[1])
			}
			open = append(open, event{
				id: m[1], aggregateType: unquote.Replace(m[2]), aggregateID: unquote.Replace(m[3]), payload: payload, index: int64(len(open)),
			})
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *world) ledger() []outcome {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	rows, err := conn.Query(w.t.Context(), `select coalesce(l.event_id::text, '') as id, coalesce(p.processor_name, '') as sink, l.status, l.commit_lsn, l.tx_index, l.status = 'discarded' and coalesce(l.error_message, '') like 'discarded by %'
		from outbox_delivery_log l left join outbox_processors p on p.id = l.processor_id order by l.commit_lsn, l.tx_index, l.id`)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []outcome
	var o outcome
	_, err = pgx.ForEachRow(rows, []any{&o.id, &o.sink, &o.status, &o.lsn, &o.index, &o.person}, func() error {
		all = append(all, o)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// printed are the lines of all runs, in the order of the runs. A run that was killed may have left half a line.
func (w *world) printed() []delivery {
	w.t.Helper()
	var all []delivery
	for _, c := range w.connectors {
		for _, run := range c.runs {
			data, err := os.ReadFile(run.stdout)
			if err != nil {
				w.t.Fatal(err)
			}
			whole := data[:bytes.LastIndexByte(data, '\n')+1]
			for line := range bytes.Lines(whole) {
				var l struct{ ID, Topic, Key, Payload string }
				if err := json.Unmarshal(line, &l); err != nil {
					w.t.Fatalf("stdout: %v in %s", err, line)
				}
				all = append(all, delivery{id: l.ID, topic: l.Topic, key: l.Key, payload: l.Payload, place: "stdout"})
			}
		}
	}
	return all
}

// snapshot notes what is settled of what the slot has passed and the stream has carried: later nothing may be added there. The slot is asked first.
func (w *world) snapshot() {
	w.t.Helper()
	s := snapshot{confirmed: w.confirmed()}
	s.settled = ask[int](w, `select count(*) from (
		select processor_id, commit_lsn, tx_index from outbox_delivery_log where status <> 'failed' and commit_lsn < $1 and tx_index >= 0
		union select processor_id, commit_lsn, tx_index from outbox_parked where status = 'parked' and commit_lsn < $1 and tx_index >= 0) s`, s.confirmed)
	w.snapshots = append(w.snapshots, s)
}

// parked is the number of deliveries that wait in the table.
func (w *world) parked() int {
	w.t.Helper()
	return ask[int](w, "select count(*) from outbox_parked where status = 'parked'")
}

// topics are those of one test.
type topics struct{ prefix string }

func (n topics) of(aggregateType string) string { return n.prefix + "." + aggregateType }

func (n topics) names() (names []string) {
	for _, a := range aggregateTypes {
		names = append(names, n.of(a))
	}
	return names
}

// presentTopics are the names of those topics that a destination has.
func (w *world) presentTopics() []string {
	return slices.DeleteFunc(w.topics.names(), func(name string) bool { return name == w.topics.of(w.missing) })
}

const partitions = 3

func (w *world) createTopics() {
	w.t.Helper()
	for _, name := range w.presentTopics() {
		// A record's time is that of its arrival, not of the event's commit.
		if err := w.kafka.CreateTopic(w.t.Context(), name, partitions, map[string]string{"message.timestamp.type": "LogAppendTime"}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// kafkaLog is all that some topics hold, read as far as anybody has asked.
type kafkaLog struct {
	t      testing.TB
	client *kgo.Client
	admin  *kadm.Client
	topics []string
	seen   []delivery
	next   map[string]int64 // offset, by topic and partition
}

func newKafkaLog(t testing.TB, brokers, topics []string) *kafkaLog {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &kafkaLog{t: t, client: client, admin: kadm.NewClient(client), topics: topics, next: map[string]int64{}}
}

func place(topic string, partition int32) string { return fmt.Sprintf("%s/%d", topic, partition) }

// read reads to the present end of every partition and returns everything, each partition in its order. No transactions are
// used, so offsets have no gaps.
func (l *kafkaLog) read() []delivery {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	ends, err := l.admin.ListEndOffsets(ctx, l.topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		l.t.Fatalf("read Kafka: %v", err)
	}
	for {
		missing := false
		ends.Each(func(o kadm.ListedOffset) { missing = missing || l.next[place(o.Topic, o.Partition)] < o.Offset })
		if !missing {
			return slices.Clone(l.seen)
		}
		fetches := l.client.PollFetches(ctx)
		if ctx.Err() != nil {
			l.t.Fatalf("read Kafka: %v", context.Cause(ctx))
		}
		fetches.EachRecord(func(r *kgo.Record) {
			d := delivery{topic: r.Topic, key: string(r.Key), payload: string(r.Value), place: place(r.Topic, r.Partition), at: r.Timestamp}
			for _, h := range r.Headers {
				if h.Key == "id" {
					d.id = string(h.Value)
				}
			}
			l.seen = append(l.seen, d)
			l.next[d.place] = r.Offset + 1
		})
	}
}

// sampler watches in the background that the slot is never ahead of the checkpoint.
type sampler struct {
	cancel  context.CancelFunc
	done    chan struct{}
	samples []sample
}

func startSampler(t testing.TB, dsn, slot string) *sampler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sampler{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			s.watch(ctx, dsn, slot, tick.C) // ends when PostgreSQL is away
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *sampler) stop() []sample {
	s.cancel()
	<-s.done
	return s.samples
}

func (s *sampler) watch(ctx context.Context, dsn, slot string, tick <-chan time.Time) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return
	}
	defer conn.Close(context.Background())
	for {
		var now sample
		// Two statements, the slot first: one would read the checkpoint as of its start, and the slot, which knows no
		// snapshots, some time later.
		err := errors.Join(
			conn.QueryRow(ctx, "select confirmed_flush_lsn from pg_replication_slots where slot_name = $1", slot).Scan(&now.slot),
			conn.QueryRow(ctx, "select confirmed_lsn from outbox_checkpoints where slot_name = $1", slot).Scan(&now.checkpoint))
		if err != nil {
			return
		}
		if len(s.samples) == 0 || s.samples[len(s.samples)-1] != now {
			s.samples = append(s.samples, now)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
	}
}
