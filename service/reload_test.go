package service

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// fakeConnector is a connector without database and sinks. It runs until its context ends, and then drains for a while.
type fakeConnector struct {
	bench    *supervisorBench
	name     string // of the one sink of its configuration
	before   connector.Predecessor
	drain    time.Duration
	failWith error // it fails with it after a second, without having streamed
	standby  bool

	mu     sync.Mutex
	status monitoring.Status
	dsn    string
	fail   chan error // ends it

	stuck atomic.Pointer[chan struct{}] // Status waits until it is closed
}

func (f *fakeConnector) set(change func(*monitoring.Status)) {
	f.mu.Lock()
	change(&f.status)
	f.mu.Unlock()
	f.bench.supervisor.health.Set("session", monitoring.OK(""))
}

func (f *fakeConnector) Run(ctx context.Context) error {
	f.bench.runs(f.name + " begins")
	defer f.bench.runs(f.name + " ends")
	if f.failWith != nil {
		time.Sleep(time.Second)
		return f.failWith
	}
	time.Sleep(100 * time.Millisecond) // a session needs a while to begin
	f.set(func(st *monitoring.Status) {
		if st.Role = monitoring.RoleStandby; !f.standby {
			st.Role, st.Sessions = monitoring.RoleLeader, 1
			st.Sinks[0].Counts.Delivered = 1
		}
	})
	select {
	case err := <-f.fail:
		return err
	case <-ctx.Done():
	}
	time.Sleep(f.drain)
	f.set(func(st *monitoring.Status) { st.Role = "" })
	return nil
}

func (f *fakeConnector) Status() monitoring.Status {
	if stuck := f.stuck.Load(); stuck != nil {
		<-*stuck
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.status
	st.Sinks = append([]monitoring.SinkStatus(nil), st.Sinks...)
	return st
}

func (f *fakeConnector) UseLogins(dsn, _ string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dsn = dsn
}

func (f *fakeConnector) Outages() map[string]time.Time {
	return outagesOf(f.name)
}

// outagesOf are the outages of which a fake connector of this name has told.
func outagesOf(name string) map[string]time.Time { return map[string]time.Time{name: {}} }

// supervisorBench is a supervisor in virtual time, with fake connectors.
type supervisorBench struct {
	t          *testing.T
	supervisor *supervisor
	sighup     chan os.Signal
	stop       context.CancelFunc
	ended      chan error

	mu     sync.Mutex
	log    bytes.Buffer
	events []string         // when which connector has begun and ended
	built  []*fakeConnector // all connectors
	told   []string         // what systemd was told

	answers answers
}

// answers are what the steps answer. A test changes them by now.
type answers struct {
	file, secrets      config.Config
	fileErr, secretErr error
	checkErr           error
	checkTakes         time.Duration
	prepare            func(*fakeConnector) // changes a connector before it runs

	checks, looks int // how often the source was connected to, and the files of secrets were read
}

// now changes what the steps answer, and returns a copy.
func (b *supervisorBench) now(change func(*answers)) answers {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if change != nil {
		change(&b.answers)
	}
	return b.answers
}

func (b *supervisorBench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

// said returns the log since the last call.
func (b *supervisorBench) said() string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.log.Reset()
	return b.log.String()
}

// says wants the log since the last call to have all of these, and to be empty if there are none.
func (b *supervisorBench) says(tells ...string) {
	b.t.Helper()
	got := b.said()
	if len(tells) == 0 && got != "" {
		b.t.Errorf("the log says %s", got)
	}
	for _, tell := range tells {
		if !strings.Contains(got, tell) {
			b.t.Errorf("the log lacks %q:\n%s", tell, got)
		}
	}
}

func (b *supervisorBench) runs(event string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, event)
}

// ran wants these begins and ends since the last call.
func (b *supervisorBench) ran(want string) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := strings.Join(b.events, ", "); got != want {
		b.t.Errorf("ran %q, want %q", got, want)
	}
	b.events = nil
}

func (b *supervisorBench) last() *fakeConnector {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.built[len(b.built)-1]
}

func configWith(sink string) config.Config {
	c := config.Default()
	c.Source.DSN, c.Source.ReplicationDSN = "postgres://u:one@h/d", "postgres://u:one@h/d"
	c.Sinks = []config.Sink{{Name: sink, Type: config.SinkStdout}}
	return c
}

// inBubble runs test in a bubble with a supervisor whose first connector streams.
func inBubble(t *testing.T, test func(t *testing.T, b *supervisorBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &supervisorBench{t: t, sighup: make(chan os.Signal, 1), ended: make(chan error, 1), answers: answers{file: configWith("a"), secrets: configWith("a")}}
		b.supervisor = newSupervisor(&monitoring.Health{}, slog.New(slog.NewTextHandler(b, nil)))
		b.supervisor.reload = b.sighup
		b.supervisor.notices.begin(Systemd{Tell: b.tell, Clock: func() string { return "MONOTONIC_USEC=1\n" }, Watchdog: time.Minute})
		defer b.supervisor.notices.end()
		b.supervisor.steps = steps{
			read: func(loaded) (loaded, []string, error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				return loaded{config: b.answers.file}, nil, b.answers.fileErr
			},
			readSecrets: func(loaded) (loaded, error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.answers.looks++
				return loaded{config: b.answers.secrets}, b.answers.secretErr
			},
			check: func(ctx context.Context, _ config.Config) error {
				b.mu.Lock()
				b.answers.checks++
				a := b.answers
				b.mu.Unlock()
				select {
				case <-time.After(a.checkTakes):
					return a.checkErr
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			build: func(cfg config.Config, before connector.Predecessor) (runner, error) {
				f := &fakeConnector{bench: b, name: cfg.Sinks[0].Name, before: before, fail: make(chan error, 1)}
				f.status.Sinks = []monitoring.SinkStatus{{Name: f.name}}
				b.mu.Lock()
				defer b.mu.Unlock()
				if b.answers.prepare != nil {
					b.answers.prepare(f)
				}
				b.built = append(b.built, f)
				return f, nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		b.stop = cancel
		go func() { b.ended <- b.supervisor.run(ctx, loaded{config: configWith("a")}) }()
		time.Sleep(time.Second)
		b.ran("a begins")
		b.says()
		b.tells("READY=1")
		test(t, b)
		cancel()
		if err := <-b.ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

func (b *supervisorBench) hup() { b.sighup <- syscall.SIGHUP }

func TestReload(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(a *answers) { a.file = configWith("b") })
		b.hup()
		time.Sleep(time.Second)
		b.ran("a ends, b begins")
		b.says("reloading the configuration", "the new configuration is in use", "took=100ms", "role=leader")
		if got, want := b.last().before, (connector.Predecessor{Worked: true, HadSlot: true, Outages: outagesOf("a")}); !reflect.DeepEqual(got, want) {
			t.Errorf("the predecessor is %+v, want %+v", got, want)
		}
		if n := b.now(nil).checks; n != 0 {
			t.Errorf("a source that has not changed was connected to %d times", n)
		}
		b.hup()
		time.Sleep(time.Second)
		b.ran("")
		b.says("nothing has changed")
		b.now(func(a *answers) { a.file.Source.DSNPlace = "outbox.yaml:7" }) // a line more above it
		b.hup()
		time.Sleep(time.Second)
		b.ran("")
		b.says("nothing has changed")
		b.now(func(a *answers) { a.file = configWith("a") })
		b.hup()
		time.Sleep(time.Second)
		b.ran("b ends, a begins")
		st, _ := b.supervisor.tally.status()
		if st.Sessions != 3 || len(st.Sinks) != 1 || st.Sinks[0].Counts.Delivered != 2 {
			t.Errorf("sessions %d, sinks %+v", st.Sessions, st.Sinks)
		}
	})
}

// Mistakes change nothing, and all of them are said.
func TestReloadWithMistakes(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) {
		mistakes := []config.Mistake{{File: "f", Line: 3, Text: "one"}, {File: "f", Line: 4, Text: "two"}}
		b.now(func(a *answers) { a.fileErr = &config.Error{Mistakes: mistakes} })
		b.hup()
		time.Sleep(time.Hour)
		b.ran("")
		b.says("level=ERROR", "everything goes on as before", "f:3: one", "f:4: two")
	})
}

// Running deliveries are waited for. SIGHUPs that come meanwhile are one reload more.
func TestReloadWaitsForTheDrain(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(*answers) { b.built[0].drain = 20 * time.Second })
		b.now(func(a *answers) { a.file = configWith("b") })
		b.hup()
		time.Sleep(10 * time.Second)
		b.ran("")
		b.says("the reload waits until running deliveries have ended and are recorded", "at_most=25s")
		if c := b.supervisor.health.Report().Components["reload"]; !strings.Contains(c.Detail, "reloading") {
			t.Errorf("/readyz says %+v", c)
		}
		b.now(func(a *answers) { a.file = configWith("c") })
		b.hup()
		select {
		case b.sighup <- syscall.SIGHUP:
			t.Error("the signal before was not kept")
		default: // as signal.Notify does
		}
		time.Sleep(time.Minute)
		b.ran("a ends, b begins, b ends, c begins")
	})
}

// The end of the process wins over a reload, whatever it is doing.
func TestEndDuringReload(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) { // during the drain
		b.now(func(*answers) { b.built[0].drain = 20 * time.Second })
		b.now(func(a *answers) { a.file = configWith("b") })
		b.hup()
		time.Sleep(10 * time.Second)
		b.stop()
		time.Sleep(time.Minute)
		b.ran("a ends")
	})
	inBubble(t, func(_ *testing.T, b *supervisorBench) { // while the new source is connected to
		b.now(func(a *answers) { a.file = configWith("b") })
		b.now(func(a *answers) { a.file.Source.Slot, a.checkTakes = "other", 5*time.Second })
		b.hup()
		time.Sleep(time.Second)
		b.said()
		b.stop()
		time.Sleep(time.Minute)
		b.ran("a ends")
		b.says()
	})
}

// A source that has changed is connected to beside the running connector.
func TestReloadOfTheSource(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(a *answers) { a.file.Source.Slot, a.checkErr = "other", errors.New("no such slot") })
		b.hup()
		time.Sleep(time.Second)
		b.ran("")
		b.says("level=ERROR", "everything goes on as before", "no such slot")

		b.now(func(a *answers) { a.checkTakes = time.Hour })
		b.hup()
		time.Sleep(sourceCheckTimeout + time.Millisecond)
		b.ran("")
		b.says("PostgreSQL has not answered within 10s")

		b.now(func(a *answers) { a.checkErr, a.checkTakes = nil, 0 })
		b.hup()
		time.Sleep(time.Second)
		b.ran("a ends, a begins")
		if got, want := b.last().before, (connector.Predecessor{HadSlot: true, Outages: outagesOf("a")}); !reflect.DeepEqual(got, want) {
			t.Errorf("the predecessor is %+v, want %+v", got, want)
		}
	})
}

// A connector that fails before it has streamed gives way to the configuration before.
func TestReloadGoesBack(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(a *answers) {
			a.prepare = func(f *fakeConnector) {
				if f.name == "b" {
					f.failWith = errors.New("orphans")
				}
			}
		})
		b.now(func(a *answers) { a.file = configWith("b") })
		b.hup()
		time.Sleep(5 * time.Second)
		b.ran("a ends, b begins, b ends, a begins")
		b.says("level=ERROR", "the one before is in force again", "orphans")
		if !b.last().before.Worked {
			t.Error("the old configuration has worked")
		}
		if got := b.last().before.Outages; !reflect.DeepEqual(got, outagesOf("b")) {
			t.Errorf("the outages before are %v", got)
		}
		// What has streamed is no longer given up for what was before it.
		b.now(func(a *answers) { a.file = configWith("c") })
		b.hup()
		time.Sleep(time.Second)
		b.ran("a ends, c begins")
		b.last().fail <- errors.New("the slot is lost")
		if err := <-b.ended; err == nil || err.Error() != "the slot is lost" {
			t.Errorf("ended with %v", err)
		}
		b.ran("c ends")
		b.ended <- nil
	})
}

// If neither works, the process ends with the error of the old configuration.
func TestReloadGoesBackOnce(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(a *answers) { a.prepare = func(f *fakeConnector) { f.failWith = errors.New(f.name + " fails") } })
		b.now(func(a *answers) { a.file = configWith("b") })
		b.hup()
		if err := <-b.ended; err == nil || err.Error() != "a fails" {
			t.Errorf("ended with %v", err)
		}
		b.ran("a ends, b begins, b ends, a begins, a ends")
		b.ended <- nil
	})
}

// One that stands by reloads as well. Its new configuration has not proved itself before it streams.
func TestReloadOfTheStandby(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(a *answers) { a.prepare = func(f *fakeConnector) { f.standby = f.name == "b" } })
		b.now(func(a *answers) { a.file = configWith("b") })
		b.hup()
		time.Sleep(time.Second)
		b.ran("a ends, b begins")
		b.says("the new configuration is in use", "role=standby")
		b.now(func(a *answers) { a.file = configWith("c") })
		b.hup()
		time.Sleep(time.Second)
		b.ran("b ends, c begins")
		if got, want := b.last().before, (connector.Predecessor{Worked: true, Outages: outagesOf("b")}); !reflect.DeepEqual(got, want) {
			t.Errorf("the predecessor is %+v, want %+v", got, want)
		}
	})
}

// http and metrics stay as they are, and the rest is in force.
func TestReloadKeepsWhatIsFixed(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) {
		b.now(func(a *answers) {
			a.file.HTTP.Listen, a.file.Metrics.Prefix, a.file.Tracing.Endpoint = "127.0.0.1:1", "other_", "https://collector:4318"
		})
		b.hup()
		time.Sleep(time.Second)
		b.ran("")
		b.says("take effect only at the next start", "http metrics tracing", "nothing has changed")
		b.now(func(a *answers) { a.file.Delivery.Lanes++ })
		b.hup()
		time.Sleep(time.Second)
		b.ran("a ends, a begins")
	})
}
