package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

var (
	tortureKills   = flag.Int("kills", 3, "how often TestTorture kills a connector")
	tortureCrashes = flag.Int("crashes", 1, "how often TestTorture lets PostgreSQL crash")
	tortureLosses  = flag.Int("losses", 1, "how often TestTorture drops the slot or moves it")
)

const (
	// delivers is how long after a fault the next session may take until it has delivered something. On a busy machine it is slow.
	delivers = 3 * time.Minute
	// tortureRate is how many transactions a second are written: few enough for an hour's events to fit into memory.
	tortureRate = 60
)

// The connector is killed and PostgreSQL crashes, again and again on one database under load. Two instances share the slot, so what follows a
// fault is the same instance or the other one. Each session delivers something before the next fault. A receiver is ill now and then,
// so that parked rows are part of it. Sometimes the slot is lost, and jobs find what was missed. "make torture" does it a thousand times.
func TestTorture(t *testing.T) {
	t.Parallel()
	r := newTorture(t)
	r.start()
	for _, kind := range r.plan(*tortureKills, *tortureCrashes, *tortureLosses) {
		r.session()
		r.fault(kind)
	}
	r.session()
	r.end()
}

// fault is what ends a session.
type fault int

const (
	killed fault = iota
	crashed
	bothAtOnce // PostgreSQL crashes, and a connector is killed with it: one of the crashes, not of the kills
	lost       // the slot is, while both connectors are dead
)

// torture is one run.
type torture struct {
	*world
	random    *rand.Rand
	instances []*instance
	loads     []interface{ stop() }
	conn      *pgx.Conn // past all proxies; nil after a crash
	began     time.Time
	told      time.Time      // when the last line about the progress was printed
	faults    []mark         // what has happened; the first one is the beginning
	moments   map[string]int // how many kills hit each moment
	onJob     bool           // the session has worked on a job, and delivered nothing as yet

	samples     []sample // from before the slot was lost
	losses      map[loss]int
	resyncKills int
	ill         bool   // the receiver refuses everything
	artifacts   string // directory of what a run that failed leaves
}

// instance is a connector, and the tap between it and PostgreSQL.
type instance struct {
	*connector
	tap *tap
}

// mark is where the ledger stood at a fault, or at the beginning.
type mark struct {
	kind   fault
	epoch  int32
	prefix pglogrepl.LSN
	onJob  bool // see torture
}

func newTorture(t *testing.T) *torture {
	t.Helper()
	pg := ownPostgres(t, map[string]string{"checkpoint_timeout": "1min"})
	r := &torture{
		world:  newWorld(t, worldOptions{pg: pg, sinks: []string{"kafka", "webhook"}, delivery: map[string]any{"park_after": "200ms"}}),
		random: testrand.New(t), moments: map[string]int{}, losses: map[loss]int{}, began: time.Now(), told: time.Now(), artifacts: t.ArtifactDir(),
	}
	t.Cleanup(r.keepEvidence)
	for range 2 {
		tap := newTap(t, pg.Addr())
		r.source["dsn"] = through(t, r.dsn, tap.proxy.Addr())
		r.instances = append(r.instances, &instance{connector: r.connector(), tap: tap})
	}
	t.Logf("PostgreSQL %s: %d kills, %d crashes, %d lost slots", pg.Version(), *tortureKills, *tortureCrashes, *tortureLosses)
	return r
}

// plan shuffles the faults.
func (r *torture) plan(kills, crashes, losses int) []fault {
	all := make([]fault, kills, kills+crashes+losses)
	for range losses {
		all = append(all, lost)
	}
	for i := range crashes {
		if i%3 == 2 {
			all = append(all, bothAtOnce)
		} else {
			all = append(all, crashed)
		}
	}
	r.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func (r *torture) start() {
	r.t.Helper()
	r.loads = append(r.loads, r.load(load{writers: 4, aggregates: 20, rate: tortureRate}), r.loadSlowly())
	r.note(killed)
	r.instances[0].start()
}

// note remembers where the ledger stands at a fault.
func (r *torture) note(kind fault) {
	r.t.Helper()
	m := mark{kind: kind, onJob: r.onJob}
	eventually(r.t, time.Minute, "the checkpoint", func() error {
		return r.query("select epoch, prefix_lsn from outbox_checkpoints where slot_name = $1", []any{r.slot}, &m.epoch, &m.prefix)
	})
	r.faults = append(r.faults, m)
}

// query reads one row over a connection that lasts until PostgreSQL crashes.
func (r *torture) query(sql string, args []any, into ...any) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	if r.conn == nil {
		conn, err := pgx.Connect(ctx, r.dsn)
		if err != nil {
			return err
		}
		r.conn = conn
	}
	err := r.conn.QueryRow(ctx, sql, args...).Scan(into...)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		r.hangUp()
	}
	return err
}

func (r *torture) hangUp() {
	if r.conn != nil {
		r.conn.Close(context.Background())
		r.conn = nil
	}
}

// session waits until a session that began after the last fault has delivered something and recorded that. While a session walks the outbox for a
// job it may have nothing to deliver: to have come further is enough then.
func (r *torture) session() {
	r.t.Helper()
	last := r.faults[len(r.faults)-1]
	before := int64(-1) // rows that jobs had looked at when the new session was first seen; a COMMIT of the killed one may come late
	eventually(r.t, delivers, fmt.Sprintf("a delivery after fault %d", len(r.faults)-1), func() error {
		for _, i := range r.instances {
			if len(i.runs) > 0 && !i.running() && i.last().cmd.ProcessState.Exited() { // and was not killed
				r.t.Fatalf("the connector has ended by itself: %s\n%s", i.last().cmd.ProcessState, tail(i.last().stderr, 10))
			}
		}
		var epoch int32
		if err := r.query("select epoch from outbox_checkpoints where slot_name = $1", []any{r.slot}, &epoch); err != nil {
			return err
		}
		if epoch <= last.epoch {
			return fmt.Errorf("no session has begun")
		}
		var n int
		var walked int64
		if err := r.query("select coalesce(sum(walked), 0)::bigint from outbox_backlog", nil, &walked); err != nil {
			return err
		}
		if before < 0 {
			before = walked
		}
		if r.onJob = walked > before; r.onJob {
			return nil
		}
		if err := r.query("select count(*) from outbox_delivery_log where commit_lsn >= $1 and epoch > $2 and status = 'delivered'",
			[]any{last.prefix, last.epoch}, &n); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("session %d has delivered nothing", epoch)
		}
		return nil
	})
}

// leader is the instance that streams.
func (r *torture) leader() *instance {
	r.t.Helper()
	var leader *instance
	eventually(r.t, delivers, "a leader", func() error {
		var problems []error
		for _, i := range r.instances {
			if !i.running() {
				continue
			}
			if h, err := i.health(); err != nil {
				problems = append(problems, err)
			} else if h.Role == "leader" {
				leader = i
				return nil
			}
		}
		return errors.Join(append(problems, errors.New("none leads"))...)
	})
	return leader
}

// fault ends the session, and sees to it that another one can begin.
func (r *torture) fault(kind fault) {
	r.t.Helper()
	if kind == lost {
		r.loses()
		return
	}
	leader := r.leader()
	switch n := len(r.faults); {
	case n%40 == 0:
		r.snapshot()
	case n%15 == 0 || r.ill && n%4 == 0:
		r.turn()
	}
	if kind == killed {
		r.awaitMoment(leader)
	} else {
		passes(r.t, time.Duration(r.random.IntN(500))*time.Millisecond)
	}
	r.note(kind)
	switch kind {
	case killed:
		leader.kill()
	case crashed, bothAtOnce:
		r.crash(leader, kind)
	}
	for _, i := range r.instances {
		i.tap.disarm()
	}
	r.revive()
	r.progress()
}

// awaitMoment waits for the moment of a kill: one of the four steps between a sink's acceptance and the confirmation of the slot, or any other.
func (r *torture) awaitMoment(leader *instance) {
	r.t.Helper()
	moments := []moment{beforeCopy, beforeCommit, beforeStatus, afterStatus}
	n := r.random.IntN(2 * len(moments))
	if n >= len(moments) {
		passes(r.t, time.Duration(r.random.IntN(300))*time.Millisecond)
		r.moments["at any time"]++
		return
	}
	var at pglogrepl.LSN
	if err := r.query("select pg_current_wal_insert_lsn()", nil, &at); err != nil {
		r.t.Fatal(err)
	}
	select {
	case <-leader.tap.arm(moments[n], at):
		r.moments[string(moments[n])]++
	case <-time.After(3 * time.Second):
		r.moments["when the moment did not come"]++
	}
}

// crash stops PostgreSQL at once, perhaps together with the leader, and starts it again.
func (r *torture) crash(leader *instance, kind fault) {
	r.t.Helper()
	r.hangUp()
	if kind == bothAtOnce && r.random.IntN(2) == 0 {
		leader.kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r.must(r.pg.Stop(ctx, servers.Immediate))
	if kind == bothAtOnce {
		leader.kill()
	}
	r.must(r.pg.Start(ctx))
}

// revive starts what has ended: always something, and often both.
func (r *torture) revive() {
	r.t.Helper()
	running := 0
	for _, i := range r.instances {
		if i.running() {
			running++
		}
	}
	for _, n := range r.random.Perm(len(r.instances)) {
		if i := r.instances[n]; !i.running() && (running == 0 || r.random.IntN(2) == 0) {
			i.start()
			running++
		}
	}
}

// turn makes the receiver refuse everything, or accept everything again.
func (r *torture) turn() {
	if r.ill = !r.ill; r.ill {
		r.hook.status.Store(503)
	} else {
		r.hook.status.Store(0)
	}
}

// end lets everything arrive, and has it checked.
func (r *torture) end() {
	r.t.Helper()
	if r.ill {
		r.turn()
	}
	for _, l := range r.loads {
		l.stop()
	}
	took := time.Since(r.began)
	truth := r.truth()
	r.jobsDone(15 * time.Minute)
	r.settledWithin(15*time.Minute, truth)
	r.report(took)
	e := r.evidence(truth, r.ledger(), expectation{faults: len(r.faults) - 1})
	e.samples = append(r.samples, e.samples...)
	r.judgeEvidence(e)
	r.keepEvents(e)
	for _, i := range r.instances {
		if i.running() {
			i.term()
		}
	}
}
