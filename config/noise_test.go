package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Spaces, newlines and a byte order mark around a value change nothing, whether it comes from a file or a variable.
func TestNoiseAroundValues(t *testing.T) {
	t.Parallel()
	const dsn, secret = "postgres://u:p%20w@localhost/shop?sslmode=disable", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for _, noisy := range []string{
		"%s", "%s\n", "%s\r\n", " %s ", "\t%s\n\n", "\ufeff%s\n", "\u200b%s\u00a0", `"%s"`, "'%s'", "\"%s\"\n", "\ufeff\" %s \"\r\n",
	} {
		around := func(value string) string { return strings.ReplaceAll(noisy, "%s", value) }
		file := filepath.Join(t.TempDir(), "dsn")
		if err := os.WriteFile(file, []byte(around(dsn)), 0o600); err != nil {
			t.Fatal(err)
		}
		// A variable of our own, one that the file refers to, and a file that the file refers to.
		for path, text := range map[string]string{"variable": "{}", "reference": `{dsn: "${MY_DSN}"}`, "file": `{dsn: "${file:` + file + `}"}`} {
			environ := []string{
				"OUTBOX_PUBLISHER_TYPE=" + around("webhook"), "OUTBOX_WEBHOOK_URL=" + around("https://partner.example/hooks"),
				"OUTBOX_WEBHOOK_SECRET=" + around(secret), "OUTBOX_BATCH_SIZE=" + around("7"), "OUTBOX_SLOT=" + around("orders"),
			}
			if path == "variable" {
				environ = append(environ, "DATABASE_URL="+around(dsn))
			} else {
				environ = append(environ, "MY_DSN="+around(dsn))
			}
			c, warnings, err := Parse("outbox.yaml", []byte("source: "+text), environ, Options{})
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s %q: %v, warnings %q", path, noisy, err, warnings)
				continue
			}
			s := c.Sinks[0].Webhook
			if string(c.Source.DSN) != dsn || string(c.Source.ReplicationDSN) != dsn || c.Source.Slot != "orders" || c.Delivery.BatchSize != 7 ||
				string(s.URL) != "https://partner.example/hooks" || string(s.Secrets[0]) != secret {
				t.Errorf("%s %q: dsn %q, slot %q, batch size %d, url %q, secret %q", path, noisy,
					string(c.Source.DSN), c.Source.Slot, c.Delivery.BatchSize, string(s.URL), string(s.Secrets[0]))
			}
		}
	}
}

// A variable that holds nothing but noise is as good as none.
func TestNothingButNoise(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"", "\n", " \r\n", `""`, "'  '", "\ufeff"} {
		_, _, err := Load("", []string{"DATABASE_URL=" + value, "OUTBOX_PUBLISHER_TYPE=stdout"})
		if err == nil || !strings.Contains(err.Error(), "source.dsn: missing") {
			t.Errorf("DATABASE_URL=%q: %v", value, err)
		}
	}
}

// A password may have quotes of its own around it: only what cannot have any loses them.
func TestQuotesOfASecretStay(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("\"pw\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "source: {dsn: postgres://localhost/shop}\nsinks: [{name: k, type: kafka, brokers: ['h:1'], tls: {enabled: true}, " +
		"sasl: {mechanism: plain, username: u, password: \"${file:" + file + "}\"}}]"
	c, _, err := Parse("outbox.yaml", []byte(text), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.Sinks[0].Kafka.SASL.Password); got != `"pw"` {
		t.Errorf("password is %q", got)
	}
}
