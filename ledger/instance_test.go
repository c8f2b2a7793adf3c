package ledger_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// The name of a process fits into what PostgreSQL shows, and what is cut still tells the pods of a deployment apart.
func TestApplicationName(t *testing.T) {
	t.Parallel()
	const pod = "the-orders-outbox-connector-7d9f8b6c5-x2x7k"
	for _, test := range []struct {
		process ledger.Process
		want    string
	}{
		{ledger.Process{Slot: "shop_outbox", Host: "db-1", PID: 4711, HTTP: ":9640"}, "outbox-cdc shop_outbox 4711@db-1 :9640"},
		{ledger.Process{Slot: "shop_outbox", Host: "db-1", PID: 4711}, "outbox-cdc shop_outbox 4711@db-1"},
		{ledger.Process{Slot: "s", Host: "two words\tü!", PID: 1, HTTP: "127.0.0.1:9640"}, "outbox-cdc s 1@two_words__! 127.0.0.1:9640"},
		{ledger.Process{Slot: strings.Repeat("s", 63), Host: "db-1", PID: 1, HTTP: ":9640"}, "outbox-cdc " + strings.Repeat("s", 38) + "~ 1@db-1 :9640"},
		{ledger.Process{Slot: strings.Repeat("s", 63), Host: "db-1", PID: 1}, "outbox-cdc " + strings.Repeat("s", 44) + "~ 1@db-1"},
		{ledger.Process{Slot: "shop_outbox", Host: pod, PID: 1, HTTP: ":9640"}, "outbox-cdc shop_ou~ 1@the-orders-outbox~r-7d9f8b6c5-x2x7k :9640"},
		{ledger.Process{Slot: "shop", Host: pod, PID: 4_194_304, HTTP: "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535"}, "outbox-cdc shop 4194304@the-orders-outb~-7d9f8b6c5-x2x7k :65535"},
	} {
		got := test.process.ApplicationName()
		if len(got) > 63 || test.want != "" && got != test.want {
			t.Errorf("%+v: %q with %d bytes, want %q", test.process, got, len(got), test.want)
		}
	}
	p := ledger.Process{Host: "the-orders-outbox~r-7d9f8b6c5-x2x7k"}
	if !p.IsOn(pod) || p.IsOn("the-orders-outbox-connector-7d9f8b6c5-aaaaa") || p.IsOn("db-1") {
		t.Error("a host that was cut is not recognised")
	}
}

// /status is asked where it can be reached from.
func TestStatusAddresses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ http, host, address, from, want string }{
		{":9640", "a", "10.0.0.1", "b", "10.0.0.1:9640 a:9640"},
		{":9640", "a", "10.0.0.1", "a", "localhost:9640 10.0.0.1:9640"},
		{":9640", "a", "127.0.0.1", "b", "a:9640"}, // from the host of PostgreSQL
		{":9640", "a", "", "b", "a:9640"},
		{":9640", "very~long", "2001:db8::1", "b", "[2001:db8::1]:9640"},
		{"127.0.0.1:9640", "a", "10.0.0.1", "b", ""},
		{"127.0.0.1:9640", "a", "10.0.0.1", "a", "127.0.0.1:9640"},
		{"localhost:9640", "a", "10.0.0.1", "b", ""},
		{"10.0.0.9:9640", "a", "10.0.0.1", "b", "10.0.0.9:9640"},
		{"", "a", "10.0.0.1", "a", ""},
	} {
		i := ledger.Instance{Process: ledger.Process{Host: test.host, HTTP: test.http}, Address: test.address}
		if got := strings.Join(i.StatusAddresses(test.from), " "); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

// instances are processes that appear in a database.
type instances struct {
	*testLedger
	slot string
}

func newInstances(t *testing.T) *instances {
	l := &instances{newLedger(t), ""}
	l.slot = l.db.Slot(t)
	l.exec("update outbox_checkpoints set slot_name = $1", l.slot)
	l.exec("create publication p for table event_outbox")
	l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.slot)
	return l
}

// process is one that has this name in the tests.
func (l *instances) process(host, http string) ledger.Process {
	return ledger.Process{Slot: l.slot, Host: host, PID: 7, HTTP: http}
}

// appear connects a process by a login, and says that it is there.
func (l *instances) appear(dsn, slot string, p ledger.Process) *pgx.Conn {
	l.t.Helper()
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		l.t.Fatal(err)
	}
	ledger.PinRun(&c.Config, p.ApplicationName())
	conn, err := pgx.ConnectConfig(l.t.Context(), c)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close(context.Background()) })
	if err := ledger.Schema("public").Appear(l.t.Context(), conn, slot); err != nil {
		l.t.Fatal(err)
	}
	return conn
}

// stream takes the slot.
func (l *instances) stream(dsn string, p ledger.Process) *replication.Stream {
	l.t.Helper()
	s, _, err := replication.Open(l.t.Context(), replication.StreamConfig{DSN: dsn, Slot: l.slot, Publication: "p", ApplicationName: p.ApplicationName()})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(s.Close)
	return s
}

// found returns what a login finds, without the time.
func (l *instances) found(conn *pgx.Conn) []ledger.Instance {
	l.t.Helper()
	all, err := ledger.Schema("public").Instances(l.t.Context(), conn, l.slot)
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range all {
		if at := all[i].LeaderSince; !at.IsZero() && (!all[i].Leader || time.Since(at).Abs() > time.Minute) {
			l.t.Errorf("%s leads since %s", all[i].Host, at)
		}
		all[i].LeaderSince = time.Time{}
	}
	return all
}

// eventually waits until these instances are found, at most as long as status promises.
func (l *instances) eventually(when string, want ...ledger.Instance) {
	l.t.Helper()
	var diff string
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		if diff = cmp.Diff(want, l.found(l.conn)); diff == "" {
			return
		}
		l.exec("select pg_sleep(0.02)")
	}
	l.t.Errorf("%s (-want +got):\n%s", when, diff)
}

// Leader and standbys are found by their connections, until these end, also without the words of a good-bye.
func TestInstances(t *testing.T) {
	t.Parallel()
	l := newInstances(t)
	l.eventually("nobody is there", []ledger.Instance(nil)...)
	a, b := l.process("a", ":9640"), l.process("b", "")
	local := func(i ledger.Instance) ledger.Instance { i.Address = "127.0.0.1"; return i }

	conn := l.appear(l.db.DSN, l.slot, a)
	l.appear(l.db.DSN, l.slot, a) // a process has several connections
	l.appear(l.db.DSN, l.slot, b)
	l.appear(l.db.DSN, "other", l.process("of another slot", ""))
	l.eventually("nobody has the slot", local(ledger.Instance{Process: a}), local(ledger.Instance{Process: b}))

	stream := l.stream(l.db.DSN, b)
	l.eventually("b has it", local(ledger.Instance{Process: b, Leader: true}), local(ledger.Instance{Process: a, StandsBy: true}))
	stream.Close()
	l.stream(l.db.DSN, a)
	l.eventually("a has it", local(ledger.Instance{Process: a, Leader: true}), local(ledger.Instance{Process: b, StandsBy: true}))

	l.exec("select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", b.ApplicationName())
	l.eventually("b is cut off", local(ledger.Instance{Process: a, Leader: true}))
	if err := conn.PgConn().Conn().Close(); err != nil { // as if it was killed: one of two connections
		t.Error(err)
	}
	l.eventually("a has a connection left", local(ledger.Instance{Process: a, Leader: true}))
}

// A login that may not write the checkpoint cannot pretend to be an instance, and finds them all the same, without what PostgreSQL does not show it.
func TestInstancesAndOtherLogins(t *testing.T) {
	t.Parallel()
	l := newInstances(t)
	name, password := pgtest.NewLogin(t, l.conn)
	l.exec("grant select on all tables in schema public to " + name)
	theirs := pgtest.WithLogin(t, l.db.DSN, name, password)
	a := l.process("a", ":9640")
	l.appear(l.db.DSN, l.slot, a)
	stranger := l.appear(theirs, l.slot, l.process("stranger", "10.0.0.1:80"))
	l.stream(l.db.DSN, a)
	want := []ledger.Instance{{Process: a, Leader: true}}
	if diff := cmp.Diff(want, l.found(stranger)); diff != "" {
		t.Errorf("for the stranger (-want +got):\n%s", diff)
	}
	want[0].Address = "127.0.0.1"
	l.eventually("for us", want...)
}

// The login for the stream may have an application_name of its own: synchronous_standby_names may name it. The recorder's connection then says
// who leads. A leader that says nothing of itself, of an older version for example, comes without a name.
func TestInstancesAndTheNameOfTheStream(t *testing.T) {
	t.Parallel()
	l := newInstances(t)
	a := l.process("a", "")
	conn := l.appear(l.db.DSN, l.slot, a)
	l.stream(l.db.DSN+"&application_name=of_mine", a)
	l.eventually("no recorder yet",
		ledger.Instance{Leader: true, Address: "127.0.0.1"}, ledger.Instance{Process: a, StandsBy: true, Address: "127.0.0.1"})
	l.exec(`update outbox_checkpoints set recorder_pid = $1, recorder_started = (select backend_start from pg_stat_activity where pid = $1)`, conn.PgConn().PID())
	l.eventually("the recorder is a's", ledger.Instance{Process: a, Leader: true, Address: "127.0.0.1"})
	l.exec("update outbox_checkpoints set recorder_started = recorder_started - interval '1 s'")
	l.eventually("another backend has its pid by now",
		ledger.Instance{Leader: true, Address: "127.0.0.1"}, ledger.Instance{Process: a, StandsBy: true, Address: "127.0.0.1"})
}
