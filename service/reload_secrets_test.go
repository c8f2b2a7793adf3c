package service

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// After a refused login the files of secrets are looked at every second, for two minutes.
func TestSecretsAreReadAgain(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		for range 100 { // however often
			b.supervisor.noteRefusal()
		}
		time.Sleep(time.Millisecond)
		if n := b.now(nil).looks; n != 1 {
			t.Errorf("%d looks at once", n)
		}
		time.Sleep(time.Hour)
		if n, want := b.now(nil).looks, int(secretsFor/secretsEvery)+1; n < want-1 || n > want {
			t.Errorf("%d looks, want %d", n, want)
		}
		b.ran("")
		b.says()

		b.supervisor.noteRefusal()
		time.Sleep(10 * time.Second)
		b.now(func(a *answers) {
			a.secrets.Sinks = []config.Sink{{Name: "a", Type: config.SinkStdout, Topic: "the new secret"}}
		})
		time.Sleep(1100 * time.Millisecond)
		b.ran("a ends, a begins")
		b.says("a login was refused, and a file of a secret has changed")
		// What is written from now on is for a password that is not changed yet.
		b.now(func(a *answers) {
			a.secrets.Sinks = []config.Sink{{Name: "a", Type: config.SinkStdout, Topic: "another one"}}
		})
		time.Sleep(time.Hour)
		b.ran("")
	})
}

// A file that vanished is said once, and everything goes on.
func TestSecretFileVanishes(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) {
		b.now(func(a *answers) { a.secretErr = errors.New("the file of ${file:/x} cannot be read") })
		b.supervisor.noteRefusal()
		time.Sleep(10 * time.Second)
		b.ran("")
		if n := strings.Count(b.said(), "level=WARN"); n != 1 {
			b.t.Errorf("%d warnings", n)
		}
		b.now(func(a *answers) { a.secretErr = nil })
		time.Sleep(5 * time.Second)
		b.now(func(a *answers) { a.secretErr = errors.New("the file of ${file:/x} is empty") })
		time.Sleep(5 * time.Second)
		b.says("level=WARN", "is empty")
		b.ran("")
	})
}

// Another password of PostgreSQL is tried before it is used, and then used by the connector that runs.
func TestPasswordOfPostgreSQL(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, b *supervisorBench) {
		b.now(func(a *answers) {
			a.secrets.Source.DSN, a.secrets.Source.ReplicationDSN = "postgres://u:two@h/d", "postgres://u:two@h/d"
			a.checkErr = errors.New("28P01")
		})
		b.supervisor.noteRefusal()
		time.Sleep(21 * time.Second)
		if n := b.now(nil).checks; n > 6 { // every sourceAgain
			t.Errorf("PostgreSQL was asked %d times", n)
		}
		if n := strings.Count(b.said(), "PostgreSQL does not take what it holds"); n != 1 {
			t.Errorf("%d warnings", n)
		}
		// The secret of a sink need not wait for it.
		b.now(func(a *answers) { a.secrets.Sinks = configWith("b").Sinks })
		time.Sleep(2 * time.Second)
		b.ran("a ends, b begins")
		if got := b.last().dsn; got != "" {
			t.Errorf("it uses %q", got)
		}
		b.now(func(a *answers) { a.checkErr = nil })
		b.supervisor.noteRefusal()
		time.Sleep(6 * time.Second)
		b.ran("")
		b.says("a password of PostgreSQL has changed")
		if got := b.last().dsn; got != "postgres://u:two@h/d" {
			t.Errorf("it uses %q", got)
		}
		// The same by a reload, in the drain of which the new one may be needed already.
		b.now(func(a *answers) { a.secrets.Source.DSN = "postgres://u:three@h/d"; a.file = a.secrets })
		b.hup()
		time.Sleep(time.Second)
		b.ran("")
		b.says("only passwords of PostgreSQL have changed")
		b.now(func(a *answers) {
			a.file.Source.DSN, a.file.Sinks = "postgres://u:four@h/d", configWith("c").Sinks
			a.secrets = a.file
		})
		old := b.last()
		b.hup()
		time.Sleep(time.Second)
		b.ran("b ends, c begins")
		if old.dsn != "postgres://u:four@h/d" {
			t.Errorf("the drain uses %q", old.dsn)
		}
	})
}

func TestSameLogin(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b config.DSN
		same bool
	}{
		{"postgres://u:a@h/d?sslmode=require", "postgres://u:b@h/d?sslmode=require", true},
		{"postgres://u@h/d?password=a", "postgres://u@h/d?password=b", true},
		{"postgres://u:a@h/d", "postgres://v:a@h/d", false},
		{"postgres://u:a@h/d", "postgres://u:a@h/d?sslmode=require", false},
		{"host=h password=a user=u", "host=h password='b \\' c' user=u", true},
		{"host=h password=a user=u", "host=h password=a user=v", false},
		{"host=h password=a", "postgres://h:a", false},
	} {
		if got := sameLogin(test.a, test.b); got != test.same {
			t.Errorf("%q and %q: %t", string(test.a), string(test.b), got)
		}
	}
}
