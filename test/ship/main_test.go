package ship

import (
	"flag"
	"os"
	"testing"
)

// long also runs what takes minutes.
var long = flag.Bool("ship", false, "also build tools and start servers, minutes")

// root is the repository's, seen from this package.
const root = "../.."

// needsLong skips a test that takes minutes, unless it was asked for.
func needsLong(t *testing.T) {
	t.Helper()
	if !*long {
		t.Skip("it takes minutes: make test-ship")
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(root + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
