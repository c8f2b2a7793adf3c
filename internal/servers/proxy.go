package servers

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Direction is which way bytes go through a Proxy.
type Direction int

// The two directions.
const (
	ToServer Direction = iota
	ToClient
)

// Verdict is what a Proxy does with bytes that its hook has seen.
type Verdict int

// The verdicts.
const (
	Forward Verdict = iota
	Hold            // keep them, and all that follows in this direction of this connection, until Resume or Cut
	Cut             // close the connection, without forwarding them
)

// Hook sees bytes before they are forwarded, as they were read: a message may come in pieces, or several at once. It
// is called by one goroutine for each direction of each connection, and must not keep data. Connections are numbered
// from 0 as they are opened.
type Hook func(dir Direction, conn int, data []byte) Verdict

// Proxy is a TCP proxy that injects faults. Its methods may be called at any time, by hooks as well, but for Close:
// that waits for hooks to return.
type Proxy struct {
	target   *net.TCPAddr
	listener *net.TCPListener
	copies   sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond // any of the following has
	links   map[*link]struct{}
	stalled [2]bool
	refuse  bool
	latency time.Duration
	rate    [2]int // bytes a second of each connection; 0: no limit
	hook    Hook
}

// link is one connection through the proxy; Proxy.mu guards what changes.
type link struct {
	number         int
	client, server *net.TCPConn
	held           [2]bool
	ended          int // directions
	closed         bool
}

var errCut = errors.New("cut")

// NewProxy listens on a free port of 127.0.0.1. The target need not be up yet.
func NewProxy(target string) (*Proxy, error) {
	server, err := net.ResolveTCPAddr("tcp", target)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: loopback, Port: port})
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: server, listener: listener, links: map[*link]struct{}{}}
	p.changed = sync.NewCond(&p.mu)
	p.copies.Go(p.accept)
	return p, nil
}

// Addr is what clients connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetHook replaces the hook; nil removes it.
func (p *Proxy) SetHook(hook Hook) { p.set(func() { p.hook = hook }) }

// SetLatency delays every read's bytes by d, and so bounds the throughput as well.
func (p *Proxy) SetLatency(d time.Duration) { p.set(func() { p.latency = d }) }

// SetRate lets each connection have so many bytes a second in these directions, as a peer does that reads slowly; 0 ends
// that.
func (p *Proxy) SetRate(bytesPerSecond int, directions ...Direction) {
	p.set(func() {
		for _, dir := range directions {
			p.rate[dir] = bytesPerSecond
		}
	})
}

// Refuse makes it reset connections that are opened from now on, until Accept.
func (p *Proxy) Refuse() { p.set(func() { p.refuse = true }) }

// Accept ends Refuse.
func (p *Proxy) Accept() { p.set(func() { p.refuse = false }) }

// Stall stops bytes of these directions in all connections, open and future, until Resume.
func (p *Proxy) Stall(directions ...Direction) {
	p.set(func() {
		for _, dir := range directions {
			p.stalled[dir] = true
		}
	})
}

// Resume ends every Stall and Hold.
func (p *Proxy) Resume() {
	p.set(func() {
		p.stalled = [2]bool{}
		for l := range p.links {
			l.held = [2]bool{}
		}
	})
}

// Cut resets all open connections.
func (p *Proxy) Cut() {
	p.set(func() {
		for l := range p.links {
			p.reset(l)
		}
	})
}

// Close ends it and its connections.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.Refuse()
	p.Cut()
	p.copies.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.changed.Broadcast()
}

func (p *Proxy) accept() {
	for number := 0; ; number++ {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			return
		}
		p.copies.Go(func() { p.connect(client, number) })
	}
}

func (p *Proxy) connect(client *net.TCPConn, number int) {
	server, err := net.DialTCP("tcp", nil, p.target) // a local port answers at once
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || p.refuse {
		reset(client)
		if err == nil {
			reset(server)
		}
		return
	}
	l := &link{number: number, client: client, server: server}
	p.links[l] = struct{}{}
	p.copies.Go(func() { p.copy(l, ToServer, server, client) })
	p.copies.Go(func() { p.copy(l, ToClient, client, server) })
}

// copy passes an orderly end of one side on to the other, which may have more to say; whatever else ends a direction
// resets both.
func (p *Proxy) copy(l *link, dir Direction, to, from *net.TCPConn) {
	err := p.forward(l, dir, to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l.ended++
	switch {
	case err != nil:
		p.reset(l)
	case l.ended == 2:
		p.forget(l)
		l.client.Close()
		l.server.Close()
	}
}

// forward returns nil at an orderly end.
func (p *Proxy) forward(l *link, dir Direction, to, from *net.TCPConn) error {
	buffer := make([]byte, maxPortion)
	for {
		n, err := from.Read(buffer[:p.portion(dir)])
		if passed := p.pass(l, dir, buffer[:n]); !passed {
			return errCut
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// maxPortion is how much is read at once.
const maxPortion = 64 << 10

// portion is how much may be read at once: of a slow connection what it has in a twentieth of a second.
func (p *Proxy) portion(dir Direction) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate[dir] == 0 {
		return maxPortion
	}
	return min(max(p.rate[dir]/20, 1), maxPortion)
}

// pass returns when data may be forwarded, or with false when the connection is to end.
func (p *Proxy) pass(l *link, dir Direction, data []byte) bool {
	p.mu.Lock()
	hook, wait := p.hook, p.latency
	if rate := p.rate[dir]; rate > 0 {
		wait += time.Duration(len(data)) * time.Second / time.Duration(rate)
	}
	p.mu.Unlock()
	verdict := Forward
	if hook != nil && len(data) > 0 {
		verdict = hook(dir, l.number, data)
	}
	time.Sleep(wait)
	p.mu.Lock()
	defer p.mu.Unlock()
	if verdict == Cut {
		return false
	}
	if verdict == Hold {
		l.held[dir] = true
	}
	for !l.closed && (p.stalled[dir] || l.held[dir]) {
		p.changed.Wait()
	}
	return !l.closed
}

// reset and forget are called with the lock held, any number of times.
func (p *Proxy) reset(l *link) {
	p.forget(l)
	reset(l.client)
	reset(l.server)
}

func (p *Proxy) forget(l *link) {
	l.closed = true
	delete(p.links, l)
	p.changed.Broadcast()
}

// reset closes a connection so that its peer sees an error and not an orderly end.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // it is closed already
	_ = conn.Close()
}
