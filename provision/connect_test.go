package provision

import (
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// If a connection string asks for something that the server will never grant, the start fails at once, and the error names what to
// change.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	user, password := pgtest.NewLogin(t, o.conn)
	for name, test := range map[string]struct {
		set   map[string]string
		code  exitcode.Code
		words []string
	}{
		"another role":    {map[string]string{"role": "postgres"}, exitcode.Privilege, []string{"the parameter role", "remove it"}},
		"another session": {map[string]string{"session_authorization": "postgres"}, exitcode.Privilege, []string{"the parameter session_authorization", "remove it"}},
		"TLS":             {map[string]string{"sslmode": "require"}, exitcode.Config, []string{"asks for TLS by its sslmode", "ssl = on"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(o.as(user, password))
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			for key, value := range test.set {
				q.Set(key, value)
			}
			u.RawQuery = q.Encode()
			_, err = connect(pgtest.Context(t), u.String())
			exitcodetest.Want(t, err, test.code, test.words...)
		})
	}
}

// A server that accepts connections and never answers, because it is frozen, cannot be reached.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	began := time.Now()
	_, err = connect(pgtest.Context(t), "postgres://postgres@"+l.Addr().String()+"/shop?sslmode=disable")
	exitcodetest.Want(t, replication.ExplainUnreachable(err), exitcode.Unavailable, "PostgreSQL cannot be reached")
	if took := time.Since(began); took < connectTimeout || took > 3*connectTimeout {
		t.Errorf("it took %s", took)
	}
}
