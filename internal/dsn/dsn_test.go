package dsn

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, wants := range map[string][]string{
		"postgres://u:canary@h:5432/d?sslmode=disable&application_name=a&options=-c%20work_mem%3D1MB": nil,
		"host=h user=u password='canary' dbname=d work_mem=64MB shop.tenant=1":                        nil,
		"postgresql://h/d?target_session_attrs=read-write&connect_timeout=3":                          nil,
		"jdbc:postgresql://h:5432/d?user=u&password=canary":                                           {"is a JDBC URL; write postgres://user:password@host:5432/database"},
		"JDBC:postgresql:d":                 {"is a JDBC URL"},
		"postgresql+asyncpg://u:canary@h/d": {"begins with postgresql+asyncpg:// instead of postgres://"},
		"mysql://u:canary@h/d":              {"begins with mysql://"},
		"postgres://u:can/ary@h/d":          {"is no connection string", "%XX"},
		"canary":                            {"is no connection string", "write postgres://user:password@host:5432/database"},
		"postgres://u:canary@h:99999/d":     {"its port is not within 1 and 65535"},
		"host=h port=0 password=canary":     {"its port is not within 1 and 65535"},
		"postgres://h/d?schema=canary&Pool_Max_Conns=canary&pgbouncer=true":     {"parameter schema", "parameter Pool_Max_Conns", "parameter pgbouncer", "docs/roles.md#poolers"},
		"host=h default_query_exec_mode=canary statement_cache_capacity=canary": {"parameter default_query_exec_mode", "parameter statement_cache_capacity"},
		"host=h replication=canary keepalives=1":                                {"parameter replication", "asks for replication itself", "parameter keepalives"},
		"postgres://h/d?sslmode=canary":                                         {"is no connection string", "sslmode is invalid"},
	} {
		config, err := Parse(text)
		if wants == nil {
			if err != nil || config == nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: accepted", text)
			continue
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", text, err, want)
			}
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: a value is told: %v", text, err)
		}
	}
}

// A secret with a newline behind it, put into a connection string.
func TestLineBreakInAPart(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://u:p\n@h/d":          "in its password",
		"postgres://u\n:p@h/d":          "in its user",
		"postgres://u:p@h\n/d":          "in its host",
		"postgres://u:p@h/d\n?a=b":      "in its database",
		"host=h user=u password='p\n'":  "in its password",
		"host=h\nuser=u\npassword='p'":  "",
		"postgres://u:p%0A@h/d":         "",
		"postgres://u:p@h/d?a=b%0A&c=d": "",
	} {
		_, err := Parse(text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
