package outbox

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A service that inserts events gets pgx and uuid with it, and what pgx needs, but nothing else of this module.
func TestImports(t *testing.T) {
	t.Parallel()
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 3 {
		t.Fatalf("go list names only %q", packages)
	}
	for _, p := range packages {
		if p == "github.com/pyairtable-compose/outbox-cdc/outbox" {
			continue
		}
		module := ""
		for _, allowed := range []string{
			"github.com/jackc/pgx/v5", "github.com/google/uuid",
			"github.com/jackc/pgpassfile", "github.com/jackc/pgservicefile", "golang.org/x/text", // of pgx
		} {
			if p == allowed || strings.HasPrefix(p, allowed+"/") {
				module = allowed
			}
		}
		if module == "" || strings.HasPrefix(p, "github.com/jackc/pgx/v5/pgxpool") || strings.HasPrefix(p, "github.com/jackc/pgx/v5/stdlib") {
			t.Errorf("imports %s", p)
		}
	}
}
