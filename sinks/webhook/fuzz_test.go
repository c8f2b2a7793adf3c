package webhook

import (
	"errors"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var urlTemplates = []string{
	"https://h.example/{tenant_id}/{aggregate_type}/{aggregate_id}",
	"https://h.example/hooks/{tenant_id}/",
	"https://h.example/v1/.{tenant_id}{aggregate_id}/x;v={event_type}?tenant={tenant_id}&kind=a{event_type}&{x}=1",
	"https://h.example/{aggregate_type}{aggregate_id}",
	"https://h.example/a?id={id}#{tenant_id}",
	"https://h.example?tenant={tenant_id}",
}

var plainValue = regexp.MustCompile(`^[A-Za-z0-9_-]+( [A-Za-z0-9_:@-]+)*$`)

// FuzzURLTemplate: whatever the fields of an event contain, the event goes to the host of the template, to a path that every
// server reads as the same number of segments, with the keys of the template in the query. Or it is not sent at all.
func FuzzURLTemplate(f *testing.F) {
	for _, v := range []string{
		"acme", "..", ".", "...", `..\\..\\admin`, `..\..\admin`, "%2e%2e", "%2e%2e%2fadmin", "%252e%252e", "..;", "..;/admin", "a/b", "//", "/", `\`, "#x", "?admin=1", "&a=b",
		"a\r\nb", "\x00", "\x7f", "\u2024\u2024", "\uff0e\uff0e", "\uff0f", "\u2215admin", "\uff3c", "é", "日本", "\xff\xc0\xae", "\xc0\xae\xc0\xae", " ", ".. ", "a b", "a:b@c", "", "@evil.example", ":80",
		"\u2488", "\ufe52\ufe52", "\u3002", "\ufffd",
	} {
		for i := range urlTemplates {
			f.Add(i, v, v, v, v)
			f.Add(i, v, "order", "42", "placed")
		}
	}
	s, err := New(Config{URL: "https://h.example/own"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, n int, tenant, aggregateType, aggregateID, eventType string) {
		template := urlTemplates[uint(n)%uint(len(urlTemplates))]
		parsed, err := router.ParseTemplate(strings.ReplaceAll(template, "{x}", "x"))
		if err != nil {
			t.Fatal(err)
		}
		fixed, err := url.Parse(regexp.MustCompile(`{[a-z_]+}`).ReplaceAllString(template, "x"))
		if err != nil {
			t.Fatal(err)
		}
		e := outbox.Event{ID: aggregateID, TenantID: tenant, AggregateType: aggregateType, AggregateID: aggregateID, EventType: eventType}
		got, err := s.target(parsed.Expand(&e))
		if err != nil {
			plain := true
			for _, v := range []string{tenant, aggregateType, aggregateID, eventType} {
				plain = plain && plainValue.MatchString(v)
			}
			if plain || !errors.Is(err, sinks.ErrPermanent) {
				t.Errorf("%+v into %s: %v", e, template, err)
			}
			return
		}
		text := got.String()
		again, err := url.Parse(text)
		if err != nil {
			t.Fatalf("%+v into %s: %s: %v", e, template, text, err)
		}
		if again.Scheme != "https" || again.Host != "h.example" || again.User != nil || again.Fragment != "" {
			t.Errorf("%+v into %s: %s leads elsewhere", e, template, text)
		}
		want := strings.Count(fixed.Path, "/")
		for p, rounds := again.EscapedPath(), 0; rounds < 3; rounds++ {
			p = strings.ReplaceAll(p, `\`, "/")
			clean := path.Clean("/" + p)
			if strings.HasSuffix(p, "/") && clean != "/" {
				clean += "/"
			}
			if p != "" && clean != p || strings.Count(p, "/") != want {
				t.Errorf("%+v into %s: %s is %q to some server", e, template, text, clean)
			}
			if p, err = url.PathUnescape(p); err != nil {
				t.Errorf("%+v into %s: %s cannot be unescaped %d times: %v", e, template, text, rounds+1, err)
				break
			}
		}
		keys := func(u *url.URL) []string { return slices.Sorted(maps.Keys(u.Query())) }
		if !slices.Equal(keys(fixed), keys(again)) || strings.Count(again.RawQuery, "&") != strings.Count(fixed.RawQuery, "&") {
			t.Errorf("%+v into %s: %s has keys %q, want %q", e, template, text, keys(again), keys(fixed))
		}
	})
}
