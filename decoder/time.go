package decoder

import "time"

// parseTime reads a timestamp as PostgreSQL writes it with DateStyle ISO, with or without an offset:
//
//	2026-11-24 03:58:21.123456+05:45
//	0044-03-15 12:00:00-00:14:44 BC
//
// Years have four to six digits. What is no point in time (NULL, infinity), and whatever else, gives the zero time: an
// event is delivered without the time of its insert rather than not at all.
func parseTime(b []byte) time.Time {
	p := timeParser{rest: b}
	year := p.digits(4, 6)
	p.expect('-')
	month := p.digits(2, 2)
	p.expect('-')
	day := p.digits(2, 2)
	p.expect(' ')
	hour := p.digits(2, 2)
	p.expect(':')
	minute := p.digits(2, 2)
	p.expect(':')
	second := p.digits(2, 2)
	nanosecond := p.fraction()
	offset := p.offset()
	if string(p.rest) == " BC" {
		year, p.rest = 1-year, nil // 1 BC is the year 0
	}
	if p.bad || len(p.rest) > 0 {
		return time.Time{}
	}
	return time.Date(year, time.Month(month), day, hour, minute, second-offset, nanosecond, time.UTC)
}

// timeParser reads a timestamp from its front. After its first disappointment it gives zeros.
type timeParser struct {
	rest []byte
	bad  bool
}

// accept takes c, if it is next.
func (p *timeParser) accept(c byte) bool {
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *timeParser) expect(c byte) {
	if !p.accept(c) {
		p.bad, p.rest = true, nil
	}
}

// digits takes a number of at least and at most so many digits.
func (p *timeParser) digits(atLeast, atMost int) int {
	n, i := 0, 0
	for i < len(p.rest) && i < atMost && '0' <= p.rest[i] && p.rest[i] <= '9' {
		n = n*10 + int(p.rest[i]-'0')
		i++
	}
	if i < atLeast {
		p.bad, p.rest = true, nil
		return 0
	}
	p.rest = p.rest[i:]
	return n
}

// fraction takes up to six digits behind a point, as nanoseconds.
func (p *timeParser) fraction() int {
	if !p.accept('.') {
		return 0
	}
	length := len(p.rest)
	n := p.digits(1, 6)
	for i := length - len(p.rest); i < 9; i++ {
		n *= 10
	}
	return n
}

// offset takes what is left of an offset from UTC, as seconds east.
func (p *timeParser) offset() int {
	sign := 1
	switch {
	case p.accept('+'):
	case p.accept('-'):
		sign = -1
	default:
		return 0
	}
	seconds := p.digits(2, 2) * 3600
	if p.accept(':') {
		seconds += p.digits(2, 2) * 60
	}
	if p.accept(':') {
		seconds += p.digits(2, 2)
	}
	return sign * seconds
}
