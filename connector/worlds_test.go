package connector

import (
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWorlds runs Connector.Run, with all that it starts, through random worlds. A world crashes, stops and starts the connector,
// crashes PostgreSQL, loses answers and notifications, and makes sinks fail, hang and refuse. Time is synctest's, so that a world
// of hours takes milliseconds. worlds_check_test.go has what is checked.
//
//	go test ./connector -run '^TestWorlds$' -worlds 10m         as many worlds as fit
//	go test ./connector -run '^TestWorlds$' -seed 77 -steps     one, step by step
//	go test ./connector -run '^TestWorlds$' -seed 1000 -seeds 500   these
//	go test ./connector -run '^TestWorlds$' -lives -worlds 10m      as many as fit of those whose slot has a life
//
// In every other world the slot has a life: it is lost and made anew, and two processes share it (worlds_slot_test.go).
// What a world does is drawn from its seed and the name of who draws, never from the order in which goroutines happen to run.
// The jitter of Retry, of messages and of sessions, and the choices of Go's scheduler remain: a seed that failed once may have to be run some times (-count).
var (
	worldsFor   = flag.Duration("worlds", 0, "run worlds for this long (default 40s, 5s with -short)")
	worldsSeed  = flag.Uint64("seed", 0, "the first world")
	worldsSeeds = flag.Uint64("seeds", 0, "how many worlds")
	worldsLives = flag.Bool("lives", false, "the slot of these worlds has a life: it is lost, and processes share it")
	worldsTrace = flag.Bool("steps", false, "print what happens in the worlds")
)

// It is not parallel to other tests: it takes all processors, and they have deadlines in real time.
func TestWorlds(t *testing.T) {
	next, count, until := *worldsSeed, *worldsSeeds, time.Now().Add(*worldsFor)
	switch {
	case next > 0:
		count, until = max(count, 1), time.Now().Add(24*time.Hour)
	case *worldsFor == 0 && testing.Short():
		until = time.Now().Add(5 * time.Second)
	case *worldsFor == 0:
		until = time.Now().Add(40 * time.Second)
	}
	if next == 0 {
		next = uint64(time.Now().Unix()) * 1000 // other worlds each time
	}
	if count == 0 {
		count = 1 << 40
	}
	every := *worldsSeed == 0 && !*worldsLives // by turns
	runWorlds(t, worlds{count: count, until: until, enough: 5, name: func(n uint64) worldName {
		return worldName{next + n, *worldsLives || every && n%2 == 1}
	}})
}

// TestKnownWorlds runs worlds in which every broken rule of the design shows: test/mutants uses them.
func TestKnownWorlds(t *testing.T) {
	runWorlds(t, knownWorlds(60, func(n uint64) worldName { return worldName{seed: 1 + n} }))
}

// TestKnownLives is TestKnownWorlds for the rules of the slot's life.
func TestKnownLives(t *testing.T) {
	runWorlds(t, knownWorlds(60, func(n uint64) worldName { return worldName{seed: 1 + n, lives: true} }))
}

// TestWorldsThatFailed runs worlds in which something was found once, or in which a broken rule shows that TestKnownLives does not see.
func TestWorldsThatFailed(t *testing.T) {
	failed := []worldName{
		// The breaker let messages ask that are never answered. The job took each of them for work that was left, and stood still for ever.
		{seed: 1795911449033, lives: true},
		{seed: 1795911449138, lives: true},
		{seed: 87, lives: true},
		{seed: 135, lives: true},
		{seed: 218, lives: true},
		// A chunk was compared before the stream was settled through it.
		{seed: 94, lives: true},
		{seed: 131, lives: true},
		{seed: 151, lives: true},
	}
	runWorlds(t, knownWorlds(uint64(len(failed)), func(n uint64) worldName { return failed[n] }))
}

func knownWorlds(count uint64, name func(n uint64) worldName) worlds {
	return worlds{count: count, until: time.Now().Add(time.Hour), enough: 1, name: name}
}

// worlds are the worlds of a test.
type worlds struct {
	count  uint64
	until  time.Time
	enough int64                    // so many failures end it
	name   func(n uint64) worldName // from 0 on
}

// worldName tells a world from all others.
type worldName struct {
	seed  uint64
	lives bool // its slot has a life: see worlds_slot_test.go
}

// alone is how to run the world alone, step by step.
func (n worldName) alone() string {
	more := ""
	if n.lives {
		more = " -lives"
	}
	return fmt.Sprintf("go test ./connector -run '^TestWorlds$' -seed %d%s -steps", n.seed, more)
}

// runWorlds runs worlds side by side, and stops when so many have failed.
func runWorlds(t *testing.T, all worlds) {
	showLabels(t)
	var ran, failed atomic.Int64
	var total worldStats
	var mu sync.Mutex
	var begun atomic.Uint64
	t.Cleanup(func() {
		t.Logf("%d worlds from seed %d, %d failed: %+v", ran.Load(), all.name(0).seed, failed.Load(), total)
	})
	for worker := range 2 {
		t.Run(fmt.Sprint("worker ", worker), func(t *testing.T) {
			t.Parallel()
			for {
				n := begun.Add(1) - 1
				if n >= all.count || time.Now().After(all.until) || failed.Load() >= all.enough {
					return
				}
				stats, violations := runWorld(t, all.name(n))
				ran.Add(1)
				mu.Lock()
				total.add(stats)
				mu.Unlock()
				if len(violations) > 0 {
					failed.Add(1)
					t.Errorf("%s:\n\t%s", all.name(n).alone(), strings.Join(violations, "\n\t"))
				}
			}
		})
	}
}

// showLabels makes stack traces show the labels of goroutines. t.Setenv does not do: the workers are parallel.
func showLabels(t *testing.T) {
	before := os.Getenv("GODEBUG")
	set := func(to string) {
		if err := os.Setenv("GODEBUG", to); err != nil { //nolint:usetesting // see above
			t.Error(err)
		}
	}
	set(before + ",tracebacklabels=1")
	t.Cleanup(func() { set(before) })
}

// runWorld runs one world, and returns the checks that failed in it.
func runWorld(t *testing.T, name worldName) (stats worldStats, violations []string) {
	// A goroutine that turns without end cannot be stopped from outside.
	watchdog := time.AfterFunc(3*time.Minute, func() { panic(name.alone() + ": no end of it") })
	defer watchdog.Stop()
	// If a goroutine of the world panics, its stack trace shows these labels. test/mutants looks for the first one.
	test, _, _ := strings.Cut(t.Name(), "/")
	pprof.Do(t.Context(), pprof.Labels("test", test, "world", name.alone()), func(context.Context) {
		synctest.Test(t, func(*testing.T) {
			w := newSimulation(name)
			w.run()
			stats, violations = w.stats, w.violations
		})
	})
	return stats, violations
}

// worldConfig is one random world. Sizes are tiny, so that every bound is met often.
type worldConfig struct {
	sinks, ring, batch, maxHeld, readLimit, maxRetries, aggregates, transactions int

	block, never, laneChange, pause, persons, bigTransactions, flaky, breaker, fast bool

	crashes, pgCrashes, sessionErrors, stops int

	maxFailures              int
	poison, late, lostCOMMIT float64
	hang                     bool // all poison times out
	giveUpAfter              time.Duration
	reset                    time.Duration // reset_timeout
	slowLedger               float64       // how many COMMITs take seconds
	large                    float64       // how many parked rows are too large for an ordinary read

	topics                int     // of each sink
	topicTrouble          float64 // how many of them go away now and then
	topicHangs, remembers bool    // topics that are away may hang; a client remembers which are away
	poisoned              float64 // aggregates of which every message is refused
	retryNow              bool    // persons want sinks asked now
	quick                 bool    // sinks that are well answer within 10 ms
	calm                  bool    // nothing fails but topics, messages, and each sink once at most, and there is room to spare

	life lifeConfig
}

func newWorldConfig(r random) worldConfig {
	c := worldConfig{
		sinks: 1 + r.IntN(3), ring: 3 + r.IntN(20), batch: 1 + r.IntN(5), maxHeld: 1 + r.IntN(4), maxRetries: r.IntN(4),
		aggregates: 1 + r.IntN(7), transactions: 40 + r.IntN(160), block: r.chance(0.25), never: r.chance(0.2), laneChange: r.chance(0.5), pause: r.chance(0.2),
		persons: r.chance(0.5), bigTransactions: r.chance(0.3), flaky: r.chance(0.2), breaker: r.chance(0.85), maxFailures: 2 + r.IntN(4), fast: r.chance(0.2),
	}
	c.readLimit = c.batch + r.IntN(6)
	if r.chance(0.8) {
		c.crashes, c.pgCrashes, c.sessionErrors = r.IntN(8), r.IntN(3), r.IntN(4)
	}
	c.poison = []float64{0, 0.01, 0.05, 0.15}[r.IntN(4)]
	if r.chance(0.5) {
		c.late = 0.3
	}
	if r.chance(0.5) {
		c.lostCOMMIT = 0.05
	}
	if r.chance(0.2) {
		c.slowLedger = 0.1
	}
	if r.chance(0.3) {
		c.large = 0.2
	}
	if r.chance(0.15) {
		c.giveUpAfter = r.between(time.Minute, 10*time.Minute)
	}
	if r.chance(0.1) {
		c.hang, c.aggregates, c.poison = true, 40, 0.3
	}
	if r.chance(0.5) {
		c.stops = r.IntN(4)
	}
	c.topics = 1
	if r.chance(0.4) {
		c.topics, c.topicTrouble, c.topicHangs, c.remembers = 2+r.IntN(3), 0.6, r.chance(0.3), r.chance(0.7)
	}
	if r.chance(0.12) {
		c.poisoned, c.aggregates, c.transactions = 0.3+r.Float64()/2, 10+r.IntN(30), 40+r.IntN(60)
	}
	c.retryNow, c.quick, c.reset = r.chance(0.4), r.chance(0.3), time.Minute
	if r.chance(0.2) {
		c.beCalm()
		c.reset = []time.Duration{3 * time.Second, 10 * time.Second, time.Minute}[r.IntN(3)]
	}
	return c
}

// beCalm leaves out what makes healthy messages wait.
func (c *worldConfig) beCalm() {
	c.calm = true
	c.crashes, c.pgCrashes, c.sessionErrors, c.stops = 0, 0, 0, 0
	c.block, c.never, c.laneChange, c.pause, c.persons, c.bigTransactions, c.flaky, c.hang = false, false, false, false, false, false, false, false
	c.late, c.lostCOMMIT, c.slowLedger, c.large, c.giveUpAfter = 0, 0, 0, 0, 0
	c.ring, c.maxHeld, c.readLimit = 500, 100, 100
}

// random draws numbers for one actor of a world: a session, a sink, a lane, a fault.
type random struct{ *rand.Rand }

// random returns what draws for this actor. What it draws depends only on the seed of the world and the name of the actor.
func (w *simulation) random(actor ...any) random {
	h := fnv.New64a()
	fmt.Fprint(h, actor...)
	return random{rand.New(rand.NewPCG(w.seed, h.Sum64()))}
}

func (d random) chance(x float64) bool { return d.Float64() < x }

// between draws a time between these two. Its odd nanoseconds keep events of different actors from happening at the same moment.
func (d random) between(from, to time.Duration) time.Duration {
	return from + time.Duration(d.Int64N(int64(to-from)+1))
}

// worldStats counts what happened, so that one can see that each thing did happen.
type worldStats struct {
	Events, Sessions, Kills, PgCrashes, Commits, LostCOMMITs, Reads, Delivers, Accepted, Again, Parked, Dead, Persons, Opened, New, Clean, PutOff, Probes, Paced, InTime, Lost, Jobs, JobRows, Cuts, LeftOut, Renumbered, Joined int
}

func (s *worldStats) add(o worldStats) {
	s.Events += o.Events
	s.Sessions += o.Sessions
	s.Kills += o.Kills
	s.PgCrashes += o.PgCrashes
	s.Commits += o.Commits
	s.LostCOMMITs += o.LostCOMMITs
	s.Reads += o.Reads
	s.Delivers += o.Delivers
	s.Accepted += o.Accepted
	s.Again += o.Again
	s.Parked += o.Parked
	s.Dead += o.Dead
	s.Persons += o.Persons
	s.New += o.New
	s.Clean += o.Clean
	s.Opened += o.Opened
	s.PutOff += o.PutOff
	s.Probes += o.Probes
	s.Paced += o.Paced
	s.InTime += o.InTime
	s.Lost += o.Lost
	s.Jobs += o.Jobs
	s.JobRows += o.JobRows
	s.Cuts += o.Cuts
	s.LeftOut += o.LeftOut
	s.Renumbered += o.Renumbered
	s.Joined += o.Joined
}

// trace prints what happens, at which time.
func (w *simulation) trace(format string, args ...any) {
	if *worldsTrace {
		fmt.Fprintf(os.Stdout, "%10.3f "+format+"\n", append([]any{time.Since(w.began).Seconds()}, args...)...)
	}
}

// violation notes that a check has failed.
func (w *simulation) violation(kind, format string, args ...any) {
	text := fmt.Sprintf("%.3f %s: ", time.Since(w.began).Seconds(), kind) + fmt.Sprintf(format, args...)
	w.trace("VIOLATION %s", text)
	w.violationsMu.Lock()
	defer w.violationsMu.Unlock()
	if len(w.violations) < 10 {
		w.violations = append(w.violations, text)
	}
}
