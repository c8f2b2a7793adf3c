package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Series is one series of the answer to a query. That of an instant query has one point.
type Series struct {
	Labels map[string]string `json:"labels"`
	Points []Point           `json:"points"`
}

// Point is a value at a time. The value can be NaN or infinite, which JSON does not have: it is a text there.
type Point struct {
	At    time.Time
	Value float64
}

// MarshalJSON returns the point as Prometheus writes it: [seconds since 1970, "value"].
func (p Point) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{float64(p.At.UnixMilli()) / 1000, strconv.FormatFloat(p.Value, 'g', -1, 64)})
}

// UnmarshalJSON is the reverse of MarshalJSON.
func (p *Point) UnmarshalJSON(data []byte) error {
	var seconds float64
	var value string
	pair := []any{&seconds, &value}
	if err := json.Unmarshal(data, &pair); err != nil {
		return err
	}
	v, err := strconv.ParseFloat(value, 64)
	p.At, p.Value = time.UnixMilli(int64(seconds*1000+0.5)), v
	return err
}

// Span is the times at which a range query is evaluated.
type Span struct {
	From, To time.Time
	Step     time.Duration
}

// Query evaluates an expression now.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Series, error) {
	return p.query(ctx, "/api/v1/query", url.Values{"query": {expr}})
}

// QueryRange evaluates an expression at each step of a span.
func (p *Prometheus) QueryRange(ctx context.Context, expr string, s Span) ([]Series, error) {
	return p.query(ctx, "/api/v1/query_range", url.Values{
		"query": {expr}, "start": {unixSeconds(s.From)}, "end": {unixSeconds(s.To)},
		"step": {strconv.FormatFloat(s.Step.Seconds(), 'f', 3, 64)},
	})
}

func unixSeconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

func (p *Prometheus) query(ctx context.Context, path string, values url.Values) ([]Series, error) {
	var answer struct {
		Type   string          `json:"resultType"`
		Result json.RawMessage `json:"result"`
	}
	if err := p.ask(ctx, path+"?"+values.Encode(), &answer); err != nil {
		return nil, fmt.Errorf("query %s: %w", values.Get("query"), err)
	}
	if answer.Type == "scalar" {
		var point Point
		err := json.Unmarshal(answer.Result, &point)
		return []Series{{Points: []Point{point}}}, err
	}
	var result []struct {
		Metric map[string]string `json:"metric"`
		Value  *Point            `json:"value"`
		Values []Point           `json:"values"`
	}
	if err := json.Unmarshal(answer.Result, &result); err != nil {
		return nil, fmt.Errorf("query %s: %w", values.Get("query"), err)
	}
	all := make([]Series, len(result))
	for i, r := range result {
		all[i] = Series{Labels: r.Metric, Points: r.Values}
		if r.Value != nil {
			all[i].Points = []Point{*r.Value}
		}
	}
	return all, nil
}

// Rule is a recording or alerting rule, as it was last evaluated.
type Rule struct {
	Name      string            `json:"name"`
	Type      string            `json:"type"` // recording or alerting
	Query     string            `json:"query"`
	Health    string            `json:"health"` // unknown (not evaluated yet), ok or err
	LastError string            `json:"lastError"`
	Labels    map[string]string `json:"labels"`
	State     string            `json:"state"` // of an alert: inactive, pending or firing
	Alerts    []Alert           `json:"alerts"`
}

// Alert is an alert that is pending or fires.
type Alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"`
	ActiveAt    time.Time         `json:"activeAt"`
	Value       string            `json:"value"`
}

// Rules returns all rules.
func (p *Prometheus) Rules(ctx context.Context) ([]Rule, error) {
	var answer struct {
		Groups []struct {
			Rules []Rule `json:"rules"`
		} `json:"groups"`
	}
	if err := p.ask(ctx, "/api/v1/rules", &answer); err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var all []Rule
	for _, g := range answer.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

// ask decodes the data of an answer into data.
func (p *Prometheus) ask(ctx context.Context, path string, data any) error {
	body, err := p.get(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, &struct{ Data any }{data})
}
