package webhook

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"
)

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	sound := func(change func(c *Config)) Config {
		c := Config{URL: "https://partner.example/hooks"}
		change(&c)
		return c
	}
	for want, c := range map[string]Config{
		"url: missing":                          {},
		"url: cannot be parsed":                 {URL: "https://canary:secret@x y/"},
		"url: its scheme must be https or http": {URL: "ftp://canary"},
		"url: it has no host":                   {URL: "https:///canary"},
		"url: it holds a user or a password; use headers (Authorization) instead": {URL: "https://canary:canary@partner.example"},
		"url: http is for hosts of allow_hosts only; use https, or add partner.example there": {
			URL: "http://partner.example/canary", AllowHosts: []string{"other.example", "partner.example:8080"},
		},
		"url: 10.1.2.3 is an internal address; add it to allow_hosts if it is meant": {URL: "https://10.1.2.3/canary"},
		"url: ::1 is an internal address; add it to allow_hosts if it is meant":      {URL: "https://[::1]:8443/canary"},
		`allow_hosts[1]: "https://a" is no host, nor host:port`:                      sound(func(c *Config) { c.AllowHosts = []string{"a", "https://a"} }),
		`allow_hosts[0]: "*.a" is no host, nor host:port`:                            sound(func(c *Config) { c.AllowHosts = []string{"*.a"} }),
		"secret[1]: is empty":                          sound(func(c *Config) { c.Secrets = []string{"canary", ""} }),
		"secret[0]: what follows whsec_ is not base64": sound(func(c *Config) { c.Secrets = []string{"whsec_canary!"} }),
		"secret[0]: whsec_ is followed by 3 bytes, and Standard Webhooks asks for 24 to 64": sound(func(c *Config) {
			c.Secrets = []string{"whsec_AAAA"}
		}),
		"headers: webhook-ID is set by the sink itself":                                sound(func(c *Config) { c.Headers = map[string]string{"webhook-ID": "canary"} }),
		"headers: ce-type is set by the sink itself":                                   sound(func(c *Config) { c.Headers = map[string]string{"ce-type": "canary"} }),
		"headers: x-outbox-event-type is set by the sink itself":                       sound(func(c *Config) { c.Headers = map[string]string{"x-outbox-event-type": "canary"} }),
		"headers: x-outbox-aggregate-id is set by the sink itself":                     sound(func(c *Config) { c.Headers = map[string]string{"x-outbox-aggregate-id": "canary"} }),
		"headers: host is set by the sink itself":                                      sound(func(c *Config) { c.Headers = map[string]string{"host": "canary"} }),
		`headers: "a b" is no name of a header`:                                        sound(func(c *Config) { c.Headers = map[string]string{"a b": "canary"} }),
		`headers: "" is no name of a header`:                                           sound(func(c *Config) { c.Headers = map[string]string{"": "canary"} }),
		"headers: the value of X-A has a line end or another control character":        sound(func(c *Config) { c.Headers = map[string]string{"X-A": "canary\r\n"} }),
		"headers: X-A is there twice":                                                  sound(func(c *Config) { c.Headers = map[string]string{"X-A": "canary", "x-a": "b"} }),
		`body: "xml" is none of raw, envelope, cloudevents and cloudevents-structured`: sound(func(c *Config) { c.Body = "xml" }),
		"source: CloudEvents need one, such as /outbox/{aggregate_type}":               sound(func(c *Config) { c.Body = "cloudevents" }),
		"connections: -1 is negative":                                                  sound(func(c *Config) { c.Connections = -1 }),
		"rate: -0.5 is no number of events a second":                                   sound(func(c *Config) { c.Rate = -0.5 }),
		"rate: NaN is no number of events a second":                                    sound(func(c *Config) { c.Rate = math.NaN() }),
		"max_retry_after: -1s is negative":                                             sound(func(c *Config) { c.MaxRetryAfter = -time.Second }),
		"url: missing\nsecret[0]: is empty\nconnections: -1 is negative":               {Secrets: []string{""}, Connections: -1},
	} {
		_, err := New(c)
		if err == nil || err.Error() != want {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestConfigTaken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{
		"https":           {URL: "https://partner.example/hooks/{aggregate_type}"},
		"allowed name":    {URL: "http://Receiver.internal:8080", AllowHosts: []string{"receiver.INTERNAL"}},
		"allowed port":    {URL: "http://receiver.internal", AllowHosts: []string{"receiver.internal:80"}},
		"allowed address": {URL: "https://10.0.0.1", AllowHosts: []string{"10.0.0.1"}},
		"allowed v6":      {URL: "http://[fd00::1]:81", AllowHosts: []string{"[fd00::1]:81"}},
		"allowed v6 bare": {URL: "http://[fd00::1]:81", AllowHosts: []string{"fd00::1"}},
		"public address":  {URL: "https://8.8.8.8"},
		"secrets":         {URL: "https://h", Secrets: []string{standardSecret, "whsec_" + strings.Repeat("A", 84), "short"}},
		"user agent":      {URL: "https://h", Headers: map[string]string{"user-agent": "shop/1", "Authorization": "Bearer \xff\tx"}},
	} {
		if _, err := New(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	t.Parallel()
	c := Config{
		URL: "https://partner.example/canary?token=canary", Secrets: []string{"canary"}, Headers: map[string]string{"Authorization": "canary"},
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %+v %#v %s %v\n", c, c, c, c, &c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "sink", c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "sink", &c)
	if strings.Contains(out.String(), "canary") || !strings.Contains(out.String(), "https://partner.example") ||
		!strings.Contains(out.String(), "Authorization") {
		t.Error(out.String())
	}
}
