package decoder

import (
	"bytes"
	"time"
)

// parseTime reads a timestamp as PostgreSQL writes it with DateStyle ISO, with or without an offset:
//
//	2026-11-24 03:58:21.123456+05:45
//	0044-03-15 12:00:00-00:14:44 BC
//
// Years have four to six digits. For anything else, such as NULL or infinity, it returns the zero time: an event is delivered
// without the time of its insert, rather than not at all.
func parseTime(b []byte) time.Time {
	b, beforeChrist := bytes.CutSuffix(b, []byte(" BC"))
	n := bytes.IndexByte(b, '-')
	if n < 4 || n > 6 || len(b) < n+15 {
		return time.Time{}
	}
	year, clock, rest := number(b[:n]), b[n:n+15], b[n+15:]
	if clock[3] != '-' || clock[6] != ' ' || clock[9] != ':' || clock[12] != ':' {
		return time.Time{}
	}
	month, day := two(clock[1], clock[2]), two(clock[4], clock[5])
	hour, minute, second := two(clock[7], clock[8]), two(clock[10], clock[11]), two(clock[13], clock[14])
	nanosecond, rest := fraction(rest)
	offset, ok := offset(rest)
	if !ok || min(year, month, day, hour, minute, second, nanosecond) < 0 {
		return time.Time{}
	}
	if beforeChrist {
		year = 1 - year // 1 BC is the year 0
	}
	return time.Date(year, time.Month(month), day, hour, minute, second-offset, nanosecond, time.UTC)
}

// number reads digits. It returns a negative number if b contains anything else.
func number(b []byte) int {
	n := 0
	for _, c := range b {
		c -= '0'
		if c > 9 {
			return -1
		}
		n = n*10 + int(c)
	}
	return n
}

// two reads a number of two digits. It returns a negative number if they are no digits.
func two(a, b byte) int {
	a, b = a-'0', b-'0'
	if a > 9 || b > 9 {
		return -1
	}
	return int(a)*10 + int(b)
}

// fraction reads a point and up to six digits, and returns nanoseconds. It returns a negative number if there are no
// digits or more than six.
func fraction(b []byte) (nanoseconds int, rest []byte) {
	if len(b) == 0 || b[0] != '.' {
		return 0, b
	}
	b = b[1:]
	n := 0
	for n < len(b) && '0' <= b[n] && b[n] <= '9' {
		n++
	}
	if n < 1 || n > 6 {
		return -1, b
	}
	nanoseconds = number(b[:n])
	for range 9 - n {
		nanoseconds *= 10
	}
	return nanoseconds, b[n:]
}

// offset reads ±hh, ±hh:mm or ±hh:mm:ss, and returns seconds east of Greenwich. An empty text is 0.
func offset(b []byte) (seconds int, ok bool) {
	switch len(b) {
	case 0:
		return 0, true
	case 3, 6, 9:
	default:
		return 0, false
	}
	sign, unit := 1, 3600
	if b[0] == '-' {
		sign = -1
	}
	for i := 0; i < len(b); i += 3 {
		n := two(b[i+1], b[i+2])
		if n < 0 || (i == 0) != (b[i] == '+' || b[i] == '-') || (i > 0) != (b[i] == ':') {
			return 0, false
		}
		seconds += n * unit
		unit /= 60
	}
	return sign * seconds, true
}
