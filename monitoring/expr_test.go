package monitoring

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	quotedPart = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	// What stands in braces, brackets and after these words are labels and durations.
	labelPart = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\boffset\s+\S+`)
	namePart  = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	keywords  = []string{"and", "or", "unless", "bool", "inf", "nan", "group_left", "group_right", "by", "without", "on", "ignoring"}
)

// metricNames are the names of the metrics in an expression of PromQL, in order, each once. Prometheus itself checks the syntax.
func metricNames(expr string) []string {
	expr = labelPart.ReplaceAllString(quotedPart.ReplaceAllString(expr, ""), " ")
	var names []string
	for _, at := range namePart.FindAllStringIndex(expr, -1) {
		name := expr[at[0]:at[1]]
		isFunction := strings.HasPrefix(strings.TrimSpace(expr[at[1]:]), "(")
		isNumber := at[0] > 0 && expr[at[0]-1] >= '0' && expr[at[0]-1] <= '9' // the e of 1e3
		if !isFunction && !isNumber && !slices.Contains(keywords, strings.ToLower(name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// objection says what is wrong with the metrics of an expression; "" if all of them exist. records are the names of the recording rules.
func objection(expr string, records []string) string {
	known := append([]string{"up", "ALERTS"}, records...)
	for _, f := range families() {
		known = append(known, defaultPrefix+f.Name)
		if f.Type == Histogram {
			known = append(known, defaultPrefix+f.Name+"_bucket", defaultPrefix+f.Name+"_count", defaultPrefix+f.Name+"_sum")
		}
	}
	for _, name := range metricNames(expr) {
		if !slices.Contains(known, name) && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			return "there is no metric " + name
		}
	}
	return ""
}

func TestMetricNames(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]string{
		`up`: "up",
		`sum by (a, le) (rate(x_total{job="$job", s=~"a|b{c}"}[$__rate_interval])) > 1e3`: "x_total",
		`max without(a) (x) and on (job, instance) y{z="\"q"} == bool 1 or -z:y:rate5m`:   "x y z:y:rate5m",
		`x * on (a) group_left (b) y offset 1h`:                                           "x y",
		`x unless y offset 1m == 1`:                                                       "x y",
		`histogram_quantile(0.99, sum(rate(x_bucket[5m])) by (le))`:                       "x_bucket",
		`time() - x > 0`:                  "x",
		`max_over_time(rate(x[5m])[1h:])`: "x",
	} {
		if got := strings.Join(metricNames(expr), " "); got != want {
			t.Errorf("%s: %s, want %s", expr, got, want)
		}
	}
	for expr, want := range map[string]string{
		"pyairtable_outbox_leader + go_goroutines":                   "",
		"pyairtable_outbox_event_processing_duration_seconds_bucket": "",
		"pyairtable_outbox_leader_bucket":                            "there is no metric pyairtable_outbox_leader_bucket",
		"job:outbox_known:rate5m":                                    "",
		"job:outbox_unknown:rate5m":                                  "there is no metric job:outbox_unknown:rate5m",
		"leader":                                                     "there is no metric leader",
	} {
		if got := objection(expr, []string{"job:outbox_known:rate5m"}); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}
