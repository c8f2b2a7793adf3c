package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestRefusedLoginIsTold(t *testing.T) {
	t.Parallel()
	password := &pgconn.PgError{Code: "28P01", Message: "password authentication failed"}
	for _, test := range []struct {
		err  error
		told int
	}{
		{nil, 0},
		{errors.New("away"), 0},
		{&pgconn.PgError{Code: "42501"}, 0},
		{fmt.Errorf("connect: %w", password), 1},
		{&pgconn.PgError{Code: "28000"}, 1},
		{fmt.Errorf("401: %w", sinks.RefusedLogin(sinks.ErrUnavailable)), 1},
	} {
		told := 0
		c := New(Config{
			Sinks: []Sink{{Name: "s"}}, Health: &monitoring.Health{}, Logger: slog.New(slog.DiscardHandler), LoginRefused: func() { told++ },
		})
		c.noteLogin(test.err)
		c.recorderConfig(nil).State(test.err)
		c.sinks["s"].state.answered(answer{cause: test.err})
		c.sinks["s"].state.read(test.err)
		if told != 4*test.told {
			t.Errorf("%v: told %d times of 4 places", test.err, told)
		}
	}
	New(Config{}).noteLogin(password) // nobody wants to know
}

// refusingDatabase is a PostgreSQL whose answers to openStream and preflight a test decides.
type refusingDatabase struct {
	database
	preflightSays func() error
	streamSays    func() error
}

func (d *refusingDatabase) preflight(context.Context) (provision.Facts, error) {
	return provision.Facts{}, d.preflightSays()
}

func (d *refusingDatabase) openStream(context.Context) (sessionStream, replication.Identity, error) {
	return nil, replication.Identity{}, d.streamSays()
}

func (d *refusingDatabase) publicationVersion(context.Context, uint32) (string, error) {
	return "", nil
}
func (d *refusingDatabase) appear(context.Context) error { return nil }
func (d *refusingDatabase) reset()                       {}
func (d *refusingDatabase) close()                       {}

// run starts a connector over d. The channel gets the error of Run.
func (d *refusingDatabase) run(ctx context.Context, before Predecessor) (*Connector, chan error) {
	c := newConnector(Config{
		Source: Source{DSN: "postgres://u:p@h/d", ReplicationDSN: "postgres://u:p@h/d"}, Health: &monitoring.Health{},
		Logger: slog.New(slog.DiscardHandler), Predecessor: before,
	}, func() (database, error) { return d, nil })
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return c, ended
}

// A login that is refused ends the process only at its very first start. A process that has worked before, be it as the standby, or
// whose predecessor has, goes on: somebody may be exchanging the password.
func TestRefusedLoginEndsOnlyTheFirstStart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		before  Predecessor
		standby bool
		ends    bool
	}{
		{"first start", Predecessor{}, false, true},
		{"standby", Predecessor{}, true, false},
		{"goes on", Predecessor{Worked: true}, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				d := &refusingDatabase{
					preflightSays: func() error {
						if test.standby && time.Since(began) < time.Minute {
							return nil
						}
						return &refusedConnection{replication.SourceDSNKey, &pgconn.PgError{Code: "28P01", Message: "refused"}}
					},
					streamSays: func() error { return replication.ErrSlotInUse },
				}
				ctx, cancel := context.WithCancel(t.Context())
				_, ended := d.run(ctx, test.before)
				time.Sleep(time.Hour)
				synctest.Wait()
				select {
				case err := <-ended:
					if !test.ends || exitcode.Of(err) != exitcode.Privilege {
						t.Errorf("ended with %v", err)
					}
				default:
					if test.ends {
						t.Error("goes on")
					}
					cancel()
					if err := <-ended; err != nil {
						t.Errorf("asked to stop: %v", err)
					}
				}
				cancel()
			})
		})
	}
}

// The slot of a predecessor is asked for again at once, as PostgreSQL may need a moment to release it. A slot that another process
// has is waited for as ever.
func TestSlotOfThePredecessor(t *testing.T) {
	t.Parallel()
	for _, had := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			began, asked := time.Now(), 0
			d := &refusingDatabase{preflightSays: func() error { return nil }}
			d.streamSays = func() error {
				if time.Since(began) < slotRelease {
					asked++
				}
				return replication.ErrSlotInUse
			}
			ctx, cancel := context.WithCancel(t.Context())
			c, ended := d.run(ctx, Predecessor{Worked: true, HadSlot: had})
			time.Sleep(slotRelease / 2)
			if standby := c.Status().Role == monitoring.RoleStandby; standby == had {
				t.Errorf("HadSlot %t: standby %t after %s", had, standby, slotRelease/2)
			}
			if !c.cfg.Health.Report().Ready {
				t.Errorf("not ready: %+v", c.cfg.Health.Report())
			}
			time.Sleep(slotRelease)
			if c.Status().Role != monitoring.RoleStandby {
				t.Errorf("HadSlot %t: not standing by", had)
			}
			if few := asked <= 3; few == had {
				t.Errorf("HadSlot %t: asked %d times", had, asked)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
