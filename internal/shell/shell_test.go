package shell

import (
	"os/exec"
	"testing"
)

func TestQuote(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"/usr/bin/outbox-cdc", "", "it's $HOME", "a b", "`id`", `\`, "~", "postgres://a:b@c/d?e=f", "a\nb", "!", "*"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+Quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q comes out of a shell as %q, %v", s, out, err)
		}
	}
	if got := Quote("/usr/bin/outbox-cdc"); got != "/usr/bin/outbox-cdc" {
		t.Errorf("quoted without need: %s", got)
	}
}
