package advisory_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// Keys with a sign and with two halves are found in pg_locks again.
func TestLock(t *testing.T) {
	t.Parallel()
	for _, key := range []int64{-7, 0x6f7574626f78, -0x6f7574626f78} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		d := pgtest.Unmigrated(t)
		holder, waiter := d.Conn(t), d.Conn(t)
		if _, err := holder.Exec(ctx, "set application_name = 'another init'"); err != nil {
			t.Fatal(err)
		}
		if err := advisory.Lock(ctx, holder, key, "it", advisory.Wait{}); err != nil {
			t.Fatal(err)
		}
		var told []string
		start := time.Now()
		err := advisory.Lock(ctx, waiter, key, `slot "s"`, advisory.Wait{Timeout: 1500 * time.Millisecond, Tell: func(h string) { told = append(told, h) }})
		who := regexp.MustCompile(`pid \d+ \(user "postgres", application "another init", connected since 2\d{3}-[^)]+, last statement at 2\d{3}-[^)]+\)`)
		if err == nil || !strings.HasPrefix(err.Error(), `slot "s" is locked by another session, and still was after 1.5s: `) || !who.MatchString(err.Error()) ||
			!strings.Contains(err.Error(), "select pg_terminate_backend(") {
			t.Errorf("key %d: %v", key, err)
		}
		if len(told) != 1 || !who.MatchString(told[0]) {
			t.Errorf("key %d: told %q", key, told)
		}
		if took := time.Since(start); took < 1500*time.Millisecond || took > 20*time.Second {
			t.Errorf("key %d: it took %s", key, took)
		}
		// The lock ends with its session.
		got := make(chan error, 1)
		go func() { got <- advisory.Lock(ctx, waiter, key, "it", advisory.Wait{}) }()
		if err := holder.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Errorf("key %d, after its holder has gone: %v", key, err)
		}
	}
}

func TestLockEndsWithItsContext(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	lock := func(ctx context.Context, conn *pgx.Conn) error {
		return advisory.Lock(ctx, conn, 7, "it", advisory.Wait{})
	}
	if err := lock(context.Background(), d.Conn(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := lock(ctx, d.Conn(t)); err == nil || !strings.HasPrefix(err.Error(), "lock it: ") {
		t.Error(err)
	}
}

// A statement that waits for a table gives up, and says for whom it has waited; within a transaction as well.
func TestTableLock(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d := pgtest.Unmigrated(t)
	holder, waiter := d.Conn(t), d.Conn(t)
	for _, sql := range []string{"set application_name = 'vacuum'", "create table of_mine (id int)", "begin", "lock table of_mine in share update exclusive mode"} {
		if _, err := holder.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := advisory.LimitTableLocks(ctx, waiter, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	who := regexp.MustCompile(`pid \d+ \(user "postgres", application "vacuum"\) has the ShareUpdateExclusiveLock of .*of_mine; wait .*pg_terminate_backend\(\d+\)`)
	for _, sql := range []string{"create publication of_mine for table of_mine", "begin; drop table of_mine; commit"} {
		_, err := waiter.PgConn().Exec(ctx, sql).ReadAll()
		if err = advisory.ExplainTableLock(ctx, waiter, err); err == nil || !who.MatchString(err.Error()) {
			t.Errorf("%s: %v", sql, err)
		}
	}
	_, err := waiter.Exec(ctx, "select 1/0")
	if got := advisory.ExplainTableLock(ctx, waiter, err); got.Error() != err.Error() {
		t.Errorf("another error became %v", got)
	}
}
