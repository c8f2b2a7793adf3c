package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A document reads the files of secrets anew each time, and the file of the configuration only once.
func TestDocument(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, secret := filepath.Join(dir, "outbox.yaml"), filepath.Join(dir, "secret")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "source: {dsn: postgres://h/d}\nsinks: [{type: webhook, url: https://h, secret: '${file:"+secret+"}'}]")
	write(secret, "one-secret-of-24-letters\n")
	d, err := ReadDocument(file, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	secretNow := func() string {
		t.Helper()
		c, _, err := d.Load()
		if err != nil {
			return err.Error()
		}
		return string(c.Sinks[0].Webhook.Secrets[0])
	}
	if got := secretNow(); got != "one-secret-of-24-letters" {
		t.Errorf("got %q", got)
	}
	write(file, "nonsense")
	write(secret, "two-secret-of-24-letters")
	if got := secretNow(); got != "two-secret-of-24-letters" {
		t.Errorf("got %q", got)
	}
	for _, empty := range []string{"", " \n"} {
		write(secret, empty)
		if got := secretNow(); !strings.Contains(got, "sinks[0].secret") || !strings.Contains(got, "is empty; write the secret into it") {
			t.Errorf("got %q", got)
		}
	}
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	if got := secretNow(); !strings.Contains(got, "cannot be read") {
		t.Errorf("got %q", got)
	}
	if _, err := ReadDocument(file+"x", nil, Options{}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v", err)
	}
}
