package replication

import (
	"net/url"
	"testing"
)

// What a server will never grant to a connection string ends the start at once, and names what to change.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	user, password := o.newRole()
	for name, test := range map[string]struct {
		set   map[string]string
		class error
		code  int
		words []string
	}{
		"another role":    {map[string]string{"role": "postgres"}, ErrPrivilege, 77, []string{"the parameter role", "remove it"}},
		"another session": {map[string]string{"session_authorization": "postgres"}, ErrPrivilege, 77, []string{"the parameter session_authorization", "remove it"}},
		"TLS":             {map[string]string{"sslmode": "require"}, ErrConfig, 78, []string{"asks for TLS by its sslmode", "ssl = on"}},
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
			_, err = connect(testContext(t), u.String())
			wantProblem(t, err, test.class, test.code, test.words...)
		})
	}
}
