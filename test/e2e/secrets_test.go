package e2e

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// rotated writes events while change exchanges a secret, and wants everything to be delivered once.
func (w *world) rotated(c *connector, change func()) {
	w.t.Helper()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 2, aggregates: 20, rate: 40})
	w.deliveredAtLeast(30*time.Second, 20)
	change()
	w.deliveredAtLeast(60*time.Second, w.delivered()+50)
	l.stop()
	w.verify(expectation{})
	c.term()
	if text := tail(c.last().stderr, 100_000); strings.Contains(text, "one-secret") || strings.Contains(text, "two-secret") || strings.Contains(text, "three-secret") {
		w.t.Error("the log holds a secret")
	}
}

// The password in PostgreSQL is changed first, and then the file; then the file first. All SQL connections have to be made anew.
func TestPasswordOfPostgreSQLIsChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	role := w.slot + "_app"
	w.exec("create role " + role + " superuser login password 'one-secret'")
	t.Cleanup(func() { dropRole(t, w, role) })
	secret := newSecretFile(t, "one-secret")
	w.source["dsn"] = strings.Replace(asRole(t, w.dsn, role, "PASSWORD"), "PASSWORD", secret.reference(), 1)
	c := w.connector()
	endSQL := func() {
		w.exec("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1 and backend_type = 'client backend'", role)
	}
	w.rotated(c, func() {
		w.exec("alter role " + role + " password 'two-secret'")
		endSQL()
		c.saysTimes(1, "password authentication failed")
		passes(t, time.Second)
		secret.write("two-secret")
		c.saysTimes(1, "a password of PostgreSQL has changed")
		w.deliveredAtLeast(60*time.Second, w.delivered()+20)

		secret.write("three-secret")
		c.hup() // too early
		c.saysTimes(1, "the configuration was not reloaded; everything goes on as before")
		w.exec("alter role " + role + " password 'three-secret'")
		endSQL()
		c.saysTimes(2, "a password of PostgreSQL has changed")
	})
}

func dropRole(t testing.TB, w *world, role string) {
	conn := connect(t, w.pg.DSN("postgres"))
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), "drop role if exists "+role); err != nil {
		t.Logf("drop role: %v", err)
	}
}

// Redis takes another password, and ends the connections of those who have the old one.
func TestPasswordOfRedisIsChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"redis_stream"}})
	w.redisDo("ACL SETUSER app on >one-secret ~* +@all")
	secret := newSecretFile(t, "one-secret")
	w.sinks[0]["username"], w.sinks[0]["password"] = "app", secret.reference()
	c := w.connector()
	w.rotated(c, func() {
		w.redisDo("ACL SETUSER app >two-secret <one-secret")
		w.redisDo("CLIENT KILL USER app")
		c.degraded("sink:redis_stream")
		secret.write("two-secret")
		c.saysTimes(1, inUse)
		w.live(c, 30*time.Second)

		// The file first: it is read when Redis refuses the old password.
		secret.write("three-secret")
		w.deliveredAtLeast(30*time.Second, w.delivered()+10)
		w.redisDo("ACL SETUSER app >three-secret <two-secret")
		w.redisDo("CLIENT KILL USER app")
		c.saysTimes(2, inUse)
		w.live(c, 30*time.Second)
	})
}

// A receiver takes another secret: after a moment it answers 401 to the old one. While the file has vanished, everything goes on.
func TestSecretOfWebhookIsChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	secret := newSecretFile(t, "Bearer one-secret")
	w.sinks[0]["headers"] = map[string]any{"Authorization": secret.reference()}
	c := w.connector()
	w.hook.takes("Bearer one-secret")
	w.rotated(c, func() {
		if err := os.Remove(secret.path); err != nil {
			t.Fatal(err)
		}
		w.hook.takes("Bearer two-secret")
		c.saysTimes(1, "the files of secrets cannot be used")
		secret.write("")
		c.saysTimes(1, "is empty")
		secret.write("Bearer two-secret")
		c.saysTimes(1, inUse)
		w.live(c, 30*time.Second)
	})
	if n := w.hook.refused.Load(); n == 0 {
		t.Error("nothing was refused, so nothing was tested")
	}
}

// takes makes the receiver answer 401 to requests without this header Authorization.
func (h *hook) takes(authorization string) { h.authorization.Store(&authorization) }

// refuses reports whether the receiver does not take the request's header Authorization.
func (h *hook) refuses(r *http.Request) bool {
	want := h.authorization.Load()
	if want == nil || r.Header.Get("Authorization") == *want {
		return false
	}
	h.refused.Add(1)
	return true
}
