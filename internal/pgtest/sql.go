package pgtest

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Context ends with the test, and a minute after it was made at the latest.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Exec runs statements. One that fails ends the test.
func Exec(t testing.TB, conn *pgx.Conn, sqls ...string) {
	t.Helper()
	for _, sql := range sqls {
		if _, err := conn.Exec(Context(t), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// Text returns the one value that a query yields, which is a text.
func Text(t testing.TB, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var s string
	if err := conn.QueryRow(Context(t), sql, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// WaitTrue asks until the answer to sql is yes.
func WaitTrue(t testing.TB, dsn, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for tick := time.Tick(50 * time.Millisecond); ; {
		var yes bool
		if err := conn.QueryRow(ctx, sql).Scan(&yes); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if yes {
			return
		}
		select {
		case <-tick:
		case <-ctx.Done():
			t.Fatalf("never true: %s", sql)
		}
	}
}

// NewLogin makes a role with login. When the test ends, the role is dropped with everything that it owns in the connection's
// database.
func NewLogin(t testing.TB, conn *pgx.Conn) (name, password string) {
	t.Helper()
	name, password = uniqueName("role"), "x"
	Exec(t, conn, "create role "+name+" login password '"+password+"'")
	t.Cleanup(func() {
		for _, sql := range []string{"drop owned by " + name, "drop role " + name} {
			if _, err := conn.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return name, password
}

// WithLogin returns a connection string, which is a URL, with another login.
func WithLogin(t testing.TB, dsn, name, password string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name, password)
	return u.String()
}
