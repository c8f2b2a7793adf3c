package glob

import (
	"path"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"payment.*", "payment.made", true},
		{"payment.*", "payment.", true},
		{"payment.*", "payment", false},
		{"payment.*", "prepayment.made", false},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"*.made", "order/payment.made", true},
		{"*a*b*c", "xaybzbc", true},
		{"*a*b*c", "xaybzb", false},
		{"a?c", "abc", true},
		{"a?c", "aüc", true},
		{"a?c", "ac", false},
		{"ü*", "über", true},
		{"*é", "café", true},
		{"a[b]", "a[b]", true},
		{"a[b]", "ab", false},
		{"**", "x", true},
		{"x**", "x", true},
	} {
		if got := Match(test.pattern, test.s); got != test.want {
			t.Errorf("Match(%q, %q) = %t", test.pattern, test.s, got)
		}
	}
}

// FuzzMatch compares with path.Match, which has the same stars and question marks, on what has none of its other signs.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("**é?*", "caféx")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if strings.ContainsAny(pattern+s, `/[]\`) {
			return
		}
		want, err := path.Match(pattern, s)
		if err != nil {
			t.Fatal(err)
		}
		if got := Match(pattern, s); got != want {
			t.Errorf("Match(%q, %q) = %t, path.Match says %t", pattern, s, got, want)
		}
	})
}
