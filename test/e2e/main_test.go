package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// shared is what all tests use: the binary and the servers that nobody breaks. The first test that needs it makes it.
var shared stage

type stage struct {
	once   sync.Once
	err    error
	dir    string
	binary string
	pg     *servers.Postgres
	kafka  *servers.Kafka
}

func (s *stage) open(t testing.TB) *stage {
	t.Helper()
	s.once.Do(func() { s.err = s.make() })
	if s.err != nil {
		t.Fatalf("nothing to test with: %v", s.err)
	}
	return s
}

func (s *stage) make() (err error) {
	if s.dir, err = os.MkdirTemp("", "outbox-e2e-"); err != nil {
		return err
	}
	s.binary = filepath.Join(s.dir, "outbox-cdc")
	g, ctx := errgroup.WithContext(context.Background())
	g.Go(func() error {
		out, err := exec.CommandContext(ctx, "go", "build", "-o", s.binary, "github.com/pyairtable-compose/outbox-cdc/cmd/outbox-cdc").CombinedOutput()
		if err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
		return nil
	})
	g.Go(func() (err error) {
		s.pg, err = servers.StartPostgres(ctx, servers.PostgresOptions{})
		return err
	})
	g.Go(func() (err error) {
		s.kafka, err = servers.StartKafka(ctx, servers.KafkaOptions{})
		return err
	})
	return g.Wait()
}

func (s *stage) close() error {
	var errs []error
	if s.kafka != nil {
		errs = append(errs, s.kafka.Close())
	}
	if s.pg != nil {
		errs = append(errs, s.pg.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// ownPostgres starts a server that the test may stop and crash.
func ownPostgres(t testing.TB, settings map[string]string) *servers.Postgres {
	t.Helper()
	pg, err := servers.StartPostgres(context.Background(), servers.PostgresOptions{Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of PostgreSQL's log:\n%s", pg.Log())
		}
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	return pg
}

// ownKafka starts a broker that the test may kill and pause.
func ownKafka(t testing.TB) *servers.Kafka {
	t.Helper()
	k, err := servers.StartKafka(context.Background(), servers.KafkaOptions{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// eventually waits until try returns nil, and fails the test with its last error when that takes too long.
func eventually(t testing.TB, patience time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// passes waits, where the passing of time itself is the condition: an outage that lasts so long, a kill after so much
// work.
func passes(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
