// Package exitcodetest checks exit codes in tests.
package exitcodetest

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// Want fails the test unless err has this exit code and all these words.
func Want(t testing.TB, err error, code exitcode.Code, words ...string) {
	t.Helper()
	if exitcode.Of(err) != code {
		t.Fatalf("exit code of %v is not %d", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}
