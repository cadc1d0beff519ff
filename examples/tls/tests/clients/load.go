// Clients by Go's TLS: idle ones, and busy ones that hash what they send and what they hear.
//
// usage: load HOST PORT IDLE BUSY BYTES SEED
//
// It says and does the same as load.py.
package main

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
)

var (
	lock  sync.Mutex
	ended atomic.Bool
	total atomic.Int64
)

func say(format string, arguments ...any) {
	lock.Lock()
	defer lock.Unlock()
	fmt.Printf(format+"\n", arguments...)
}

func number(place int) int {
	value, err := strconv.Atoi(os.Args[place])
	if err != nil {
		panic(err)
	}
	return value
}

func portOf(stream net.Conn) int {
	return stream.LocalAddr().(*net.TCPAddr).Port
}

func connect(place int) *tls.Conn {
	version := uint16(tls.VersionTLS12 + place%2)
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
	stream, err := tls.Dial("tcp", net.JoinHostPort(os.Args[1], os.Args[2]), config)
	if err != nil {
		panic(err)
	}
	say("open %d", portOf(stream))
	return stream
}

// exchange says a text and hears as much.
func exchange(stream *tls.Conn, text []byte, heard io.Writer) error {
	for len(text) > 0 {
		piece := text
		if len(piece) > 32768 {
			piece = piece[:32768]
		}
		if _, err := stream.Write(piece); err != nil {
			return err
		}
		if _, err := io.CopyN(heard, stream, int64(len(piece))); err != nil {
			return err
		}
		text = text[len(piece):]
	}
	return nil
}

func guarded(stream *tls.Conn, work func() error) {
	if err := work(); err != nil {
		say("broken %d %v", portOf(stream), err)
	}
}

func runBusy(place int, stream *tls.Conn, quota int, seed int64) {
	guarded(stream, func() error {
		dice := rand.New(rand.NewSource(seed*1000 + int64(place)))
		said, heard, gone := sha256.New(), sha256.New(), 0
		for gone < quota || !ended.Load() {
			text := make([]byte, []int{1, 100, 5000, 20000, 200000}[dice.Intn(5)])
			dice.Read(text)
			said.Write(text)
			if err := exchange(stream, text, heard); err != nil {
				return err
			}
			gone += len(text)
		}
		if string(said.Sum(nil)) != string(heard.Sum(nil)) {
			return errors.New("another hash")
		}
		total.Add(int64(gone))
		return stream.Close()
	})
}

func main() {
	idle, busy, quota, seed := number(3), number(4), number(5), int64(number(6))
	var idlers []*tls.Conn
	for place := range make([]int, idle) {
		idlers = append(idlers, connect(place))
	}
	var done sync.WaitGroup
	for place := range make([]int, busy) {
		stream := connect(place)
		done.Add(1)
		go func(place int) {
			defer done.Done()
			runBusy(place, stream, quota, seed)
		}(place)
	}
	say("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	ended.Store(true)
	for _, stream := range idlers {
		guarded(stream, func() error {
			if err := exchange(stream, []byte("still here"), io.Discard); err != nil {
				return err
			}
			return stream.Close()
		})
	}
	done.Wait()
	say("done %d", total.Load())
}
