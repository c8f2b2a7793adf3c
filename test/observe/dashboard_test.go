//go:build linux

package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// dashboardFile is the dashboard that is delivered.
var dashboardFile = filepath.Join("..", "..", "monitoring", "grafana", "dashboards", "outbox", "outbox-monitoring.json")

// dashboard is what of Grafana's format is tested.
type dashboard struct {
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name  string          `json:"name"`
			Type  string          `json:"type"`
			Query json.RawMessage `json:"query"`
		} `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []struct {
			Name string `json:"name"`
			Expr string `json:"expr"`
		} `json:"list"`
	} `json:"annotations"`
}

type panel struct {
	ID          int             `json:"id"`
	Title       string          `json:"title"`
	Type        string          `json:"type"`
	Description string          `json:"description"`
	Panels      []panel         `json:"panels,omitempty"` // of a row that is closed
	GridPos     json.RawMessage `json:"gridPos"`
	Targets     []target        `json:"targets"`
	FieldConfig json.RawMessage `json:"fieldConfig"`
	Options     json.RawMessage `json:"options"`
}

// target is a query of a panel, and in answers.json what Prometheus answered.
type target struct {
	RefID   string           `json:"refId"`
	Expr    string           `json:"expr"`
	Legend  string           `json:"legendFormat"`
	Instant bool             `json:"instant"`
	Format  string           `json:"format"`
	Asked   string           `json:"asked"`  // the expression with all variables replaced
	Series  []servers.Series `json:"series"` // over the time of the test, also of an instant query
}

// answers is the file answers.json.
type answers struct {
	From   float64 `json:"from"` // seconds since 1970
	To     float64 `json:"to"`
	Step   float64 `json:"step"` // seconds
	Panels []panel `json:"panels"`
}

// unit is the unit in which the panel shows the values of a query, as Grafana calls it. A column of a table, which is named as the query's legend, may have one of its own.
func (p panel) unit(t testing.TB, q target) string {
	t.Helper()
	var config struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
		Overrides []struct {
			Matcher struct {
				Options any `json:"options"`
			} `json:"matcher"`
			Properties []struct {
				ID    string `json:"id"`
				Value any    `json:"value"`
			} `json:"properties"`
		} `json:"overrides"`
	}
	if p.FieldConfig == nil {
		return ""
	}
	if err := json.Unmarshal(p.FieldConfig, &config); err != nil {
		t.Fatalf("panel %s: %v", p.Title, err)
	}
	unit := config.Defaults.Unit
	for _, o := range config.Overrides {
		if o.Matcher.Options != q.Legend {
			continue
		}
		for _, property := range o.Properties {
			if text, ok := property.Value.(string); ok && property.ID == "unit" {
				unit = text
			}
		}
	}
	return unit
}

func readDashboard(t testing.TB) dashboard {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Panels) == 0 {
		t.Fatalf("%s has no panels", dashboardFile)
	}
	return d
}

// all returns the panels with those of rows that are closed.
func (d dashboard) all() (all []panel) {
	for _, p := range d.Panels {
		all = append(all, p)
		all = append(all, p.Panels...)
	}
	return all
}

var offsets = regexp.MustCompile(`\boffset\s+\d+(ms|s|m|h|d|w)\b`)

// replaceVariables returns an expression as Grafana sends it with everything chosen. A comparison with the day before becomes one with five
// seconds before, and ranges become as short as those of the rules.
func replaceVariables(expr string, lasts time.Duration) string {
	expr = strings.NewReplacer(
		"$__rate_interval", "20s", "${__rate_interval}", "20s", "$__interval", "5s", "${__interval}", "5s",
		"$__range_s", fmt.Sprint(int(lasts.Seconds())), "$__range", fmt.Sprintf("%ds", int(lasts.Seconds())),
		"$job", job, "${job}", job, "$instance", ".*", "${instance}", ".*", "$sink", ".*", "${sink}", ".*",
	).Replace(expr)
	return offsets.ReplaceAllString(shorten(expr, times), "offset 5s")
}

// checkDashboard asks every query of every panel for the whole of a span. Each answers with a series, whose values are finite and are what
// the unit of the panel says.
func checkDashboard(t *testing.T, p *prometheus, span servers.Span) {
	d := readDashboard(t)
	a := answers{From: float64(span.From.UnixMilli()) / 1000, To: float64(span.To.UnixMilli()) / 1000, Step: span.Step.Seconds()}
	lasts := span.To.Sub(span.From)
	queries := 0
	for _, v := range d.Templating.List {
		checkVariable(t, p, v.Name, v.Type, string(v.Query))
	}
	for _, annotation := range d.Annotations.List {
		if annotation.Expr != "" {
			p.seriesOver(replaceVariables(annotation.Expr, lasts), span)
		}
	}
	for _, panel := range d.all() {
		for i := range panel.Targets {
			q := &panel.Targets[i]
			q.Asked = replaceVariables(q.Expr, lasts)
			if strings.Contains(q.Asked, "$") {
				t.Errorf("panel %q asks with a variable that nobody replaces: %s", panel.Title, q.Asked)
				continue
			}
			q.Series = p.seriesOver(q.Asked, span)
			queries++
			if len(q.Series) == 0 && !strings.Contains(q.Asked, needsFailover) && (*full || !strings.Contains(q.Asked, needsLong)) {
				t.Errorf("panel %q has no series: %s", panel.Title, q.Asked)
			}
			for _, problem := range implausible(panel.unit(t, *q), q) {
				t.Errorf("panel %q, in %s: %s: %s", panel.Title, panel.unit(t, *q), problem, q.Asked)
			}
		}
		a.Panels = append(a.Panels, panel)
	}
	t.Logf("%d panels with %d queries were asked", len(a.Panels), queries)
	writeAnswers(t, a)
}

var labelValues = regexp.MustCompile(`label_values\((.*),\s*(\w+)\)`)

// checkVariable wants a variable to have something to choose.
func checkVariable(t *testing.T, p *prometheus, name, kind, query string) {
	if kind != "query" {
		return
	}
	m := labelValues.FindStringSubmatch(query)
	if m == nil {
		t.Errorf("variable %s: %s is not understood by this test", name, query)
		return
	}
	// In the JSON of the file the query is a text, or an object that has it as a text.
	expr := replaceVariables(strings.ReplaceAll(m[1], `\"`, `"`), time.Minute)
	for _, s := range p.series(expr) {
		if s.Labels[m[2]] != "" {
			return
		}
	}
	t.Errorf("variable %s has nothing to choose: %s", name, expr)
}

// unitsOf are the units of the families of the table whose names an expression has, and whether it is a rate.
func unitsOf(expr string) (units []string, rate bool) {
	for _, group := range monitoring.Catalogue() {
		for _, f := range group.Families {
			if regexp.MustCompile(`\b` + prefix + f.Name + `(_bucket|_sum|_count)?\b`).MatchString(expr) {
				units = append(units, f.Unit)
			}
		}
	}
	for _, m := range regexp.MustCompile(`\b(process|go)_\w+`).FindAllString(expr, -1) {
		switch {
		case strings.Contains(m, "_bytes"):
			units = append(units, "bytes")
		case strings.Contains(m, "_seconds"):
			units = append(units, "seconds")
		default:
			units = append(units, "1")
		}
	}
	return units, strings.Contains(expr, "rate(") || strings.Contains(expr, ":rate") || strings.Contains(expr, "deriv(")
}

// implausible says what of an answer is not what the unit of its panel promises.
func implausible(unit string, q *target) (problems []string) {
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range q.Series {
		finite := 0
		for _, point := range s.Points {
			if math.IsNaN(point.Value) || math.IsInf(point.Value, 0) {
				continue
			}
			finite++
			low, high = min(low, point.Value), max(high, point.Value)
		}
		if finite == 0 {
			problems = append(problems, fmt.Sprintf("no value of %v is a finite number", s.Labels))
		}
	}
	if high < low {
		return problems
	}
	say := func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf(format, args...)+fmt.Sprintf(" (%g to %g)", low, high))
	}
	units, rate := unitsOf(q.Expr)
	has := func(unit string) bool {
		return len(units) == 0 || slices.ContainsFunc(units, func(u string) bool { return strings.HasPrefix(u, unit) })
	}
	switch unit {
	case "s", "dtdurations", "clocks":
		if !has("seconds") {
			say("nothing in it is in seconds")
		}
		if high > 1e9 {
			say("these are no seconds but a moment")
		}
	case "bytes", "decbytes":
		if !has("bytes") || rate {
			say("nothing in it is in bytes")
		}
	case "Bps", "binBps":
		if !has("bytes") || !rate {
			say("nothing in it is in bytes a second")
		}
	case "percentunit":
		if low < -.001 && !strings.Contains(q.Expr, "budget_left") || high > 1.5 { // a budget may be overspent
			say("these are no shares of 1")
		}
	case "percent":
		if low < -.1 || high > 150 {
			say("these are no shares of 100")
		}
	case "ops", "cps", "eps", "reqps", "wps", "rps":
		if !rate {
			say("it is no rate")
		}
	case "dateTimeAsIso", "dateTimeFromNow", "dateTimeAsLocal":
		if low != 0 && low < 1e12 {
			say("these are no milliseconds since 1970")
		}
	}
	return problems
}

// writeAnswers writes what the panels show into the directory of the flag -out, and has render draw it.
func writeAnswers(t *testing.T, a answers) {
	t.Helper()
	if *out == "" {
		return
	}
	text, err := json.MarshalIndent(a, "", " ")
	if err == nil {
		err = os.MkdirAll(*out, 0o755)
	}
	file, picture := filepath.Join(*out, "answers.json"), filepath.Join(*out, "dashboard.png")
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	// The picture is for people, and needs a library that nothing else does.
	if text, err := exec.CommandContext(ctx, "./render", file, picture).CombinedOutput(); err != nil {
		t.Logf("there is no picture: %v; it needs Debian's python3-matplotlib\n%s", err, text)
		return
	}
	t.Logf("%s shows what the panels show", picture)
}
