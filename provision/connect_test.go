package provision

import (
	"net/url"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
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
