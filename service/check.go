package service

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// CheckSink is what config.Options asks the sinks' packages with: what they have against cfg.Sinks[i]. Files that it names
// are read; nothing is connected to.
func CheckSink(cfg config.Config, i int) []config.Mistake {
	if cfg.Sinks[i].Composite != nil {
		return nil
	}
	_, mistakes := newSinkBuilder(cfg, Parts{}).build(cfg.Sinks[i])
	return mistakes
}

// check finds what New refuses.
func check(open opener) (mistakes []config.Mistake) {
	s, err := open()
	if err == nil {
		err = s.Close()
	}
	if err == nil {
		return nil
	}
	for text := range strings.Lines(err.Error()) { // joined errors have a line each
		mistakes = append(mistakes, mistakeOf(strings.TrimSuffix(text, "\n")))
	}
	return mistakes
}

// said is how the sinks' packages begin an error about a field of theirs: its name, perhaps an index, and a colon, or a
// quotation of it.
var said = regexp.MustCompile(`^(placement|headers from metadata|headers|format|secrets|url|the URL|allow_hosts|inbox prefix|nkey seed file)` +
	`(\[\d+\])?( \d+)?(:? |'s )`)

// keyOf is the key for such a name, where it is another.
var keyOf = map[string]string{
	"headers from metadata": "headers_from_metadata", "secrets": "secret", "the URL": "url", "inbox prefix": "inbox_prefix", "nkey seed file": "nkey_file",
}

// mistakeOf finds the key that an error is about.
func mistakeOf(text string) config.Mistake {
	m := said.FindStringSubmatch(text)
	if m == nil {
		return config.Mistake{Text: text}
	}
	key := m[1]
	if k := keyOf[key]; k != "" {
		key = k
	}
	if strings.HasPrefix(m[4], ":") {
		text = text[len(m[0]):]
	}
	return config.Mistake{Path: key + m[2], Text: text}
}

// wrongFile is a mistake about a key that names a file.
func wrongFile(key string, err error) config.Mistake {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		err = fmt.Errorf("%s cannot be read: %w", pathErr.Path, pathErr.Err)
	}
	return config.Mistake{Path: key, Text: err.Error()}
}

// checkCredentials reads a file of NATS credentials as the client does at each connect, and keeps nothing of it: one that
// is missing, or has no seed to sign with, would keep the sink away for ever.
func checkCredentials(path string) []config.Mistake {
	if path == "" {
		return nil
	}
	content, err := os.ReadFile(path)
	if err == nil {
		var pair nkeys.KeyPair
		if pair, err = nkeys.ParseDecoratedNKey(content); err == nil {
			pair.Wipe()
		}
		clear(content)
	}
	if err != nil {
		return []config.Mistake{wrongFile("credentials_file", err)}
	}
	return nil
}

// tlsConfig is nil where TLS is off. Certificates are verified unless the configuration says otherwise in so many words.
func tlsConfig(c config.TLS) (*tls.Config, []config.Mistake) {
	if !c.Enabled {
		return nil, nil
	}
	var mistakes []config.Mistake
	wrong := func(key string, err error) {
		mistakes = append(mistakes, wrongFile("tls."+key, err))
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.InsecureSkipVerify} //nolint:gosec // asked for by name
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		t.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			wrong("ca_file", err)
		case !t.RootCAs.AppendCertsFromPEM(pem):
			wrong("ca_file", fmt.Errorf("%s holds no certificate", c.CAFile))
		}
	}
	if c.CertFile != "" && c.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			wrong("cert_file", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, mistakes
}
