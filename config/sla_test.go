package config

import (
	"testing"
	"time"
)

// A sink has its own objective, field by field, and the others have that of the file, which the environment beats.
func TestSLA(t *testing.T) {
	t.Parallel()
	const file = `
sla: {within: 250ms, objective: 99.9}
sinks:
  - {name: a, type: stdout}
  - {name: b, type: stdout, sla: {within: 5s}}
  - {name: c, type: stdout, sla: {objective: 95}}
`
	for name, test := range map[string]struct {
		file    string
		environ []string
		want    []SLA
	}{
		"the default": {file: "sinks: [{type: stdout}]", want: []SLA{{time.Second, 99}}},
		"the file":    {file: file, want: []SLA{{250 * time.Millisecond, 99.9}, {5 * time.Second, 99.9}, {250 * time.Millisecond, 95}}},
		"the environment": {
			file: file, environ: []string{"OUTBOX_SLA_WITHIN=1m", "OUTBOX_SLA_OBJECTIVE=50"},
			want: []SLA{{time.Minute, 50}, {5 * time.Second, 50}, {time.Minute, 95}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _, err := Parse("f.yml", []byte(test.file), test.environ, Options{DSN: "postgres://localhost/shop"})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				for i, want := range test.want {
					if got := c.SLAOf(c.Sinks[i]); got != want {
						t.Errorf("sink %s has the objective %+v, want %+v", c.Sinks[i].Name, got, want)
					}
				}
				text, err := Effective(c) // which loads again
				if err != nil {
					t.Fatal(err)
				}
				if c, _, err = Parse("effective.yml", []byte(text), nil, Options{}); err != nil {
					t.Fatalf("%v\n%s", err, text)
				}
			}
		})
	}
	for name, want := range map[string]string{
		"OUTBOX_SLA_WITHIN=0s":       "OUTBOX_SLA_WITHIN: sla.within: 0s is not between 1ms and 1h0m0s",
		"OUTBOX_SLA_WITHIN=1":        `OUTBOX_SLA_WITHIN: sla.within: "1" is no duration; write 500ms, 30s or 5m`,
		"OUTBOX_SLA_OBJECTIVE=100.1": "OUTBOX_SLA_OBJECTIVE: sla.objective: 100.1 is not more than 0 and less than 100; write a share in per cent, such as 99.9",
		"OUTBOX_SLA_OBJECTIVE=high":  `OUTBOX_SLA_OBJECTIVE: sla.objective: "high" is no number`,
	} {
		_, _, err := Parse("f.yml", []byte(file), []string{name}, Options{DSN: "postgres://localhost/shop"})
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}
