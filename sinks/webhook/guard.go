package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
)

// dialError is of a connection that was not made, TLS included: nothing was sent.
type dialError struct{ cause error }

func (e *dialError) Error() string { return e.cause.Error() }
func (e *dialError) Unwrap() error { return e.cause }

var errInternal = errors.New("it has an internal address, to which no request is sent; add its host to allow_hosts if it is meant")

var errNoTLS = errors.New("the server answers there, and not with TLS; correct the port of url, or write http:// and name the host in allow_hosts")

// newTransport makes connections for s. It speaks HTTP/1.1 and knows no proxy, which would
// connect where the guard does not see it.
func newTransport(s *settings, own *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if !s.allowed {
		dialer.Control = guard
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if own != nil {
		config = own.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = s.url.Hostname()
	}
	if config.ClientSessionCache == nil {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // one host
	}
	config.NextProtos = []string{"http/1.1"}

	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	dialTLS := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
				err = errNoTLS
			}
			return nil, &dialError{fmt.Errorf("TLS: %w", err)}
		}
		return secured, nil
	}
	t := &http.Transport{
		DialContext: dial, DialTLSContext: dialTLS,
		DisableCompression:     true, // of answers, which nobody reads
		MaxConnsPerHost:        s.connections,
		MaxIdleConnsPerHost:    s.connections,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		WriteBufferSize:        16 << 10, // most requests are one write
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// guard is called with an address that is about to be connected to, after all resolving: no name, and no answer of a
// DNS server that changes between two questions, gets past it.
func guard(network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" || isInternal(to.Addr()) {
		return errInternal
	}
	return nil
}

// internal4 are the addresses of version 4 that the Internet does not route to (IANA's special-purpose registry, and
// what is above it).
var internal4 = prefixes(
	"0.0.0.0/8",       // this host
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // carriers' NAT, and some clouds' metadata
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, and the clouds' metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved, broadcast
)

// global6 is what the Internet routes of version 6. Outside of it are loopback, link-local, unique local, multicast,
// mapped and translated (NAT64) addresses; internal6 is what is inside and no better.
var (
	global6   = netip.MustParsePrefix("2000::/3")
	internal6 = prefixes(
		"2001::/23",     // protocol assignments, Teredo among them, which holds an address of version 4
		"2001:db8::/32", // documentation
		"2002::/16",     // 6to4, which holds an address of version 4
		"3fff::/20",     // documentation
	)
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// isInternal tells whether an address is one that only a host within somebody's network has.
func isInternal(a netip.Addr) bool {
	denied := internal4
	if !a.Is4() {
		if !global6.Contains(a) { // nor does it contain one with a zone
			return true
		}
		denied = internal6
	}
	for _, p := range denied {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
