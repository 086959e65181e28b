// Command pod is what runs in the pods of a real node: a static program that
// is an image's only file.
//
//	pod pause                   holds a pod's namespaces until it is told to end
//	pod call URL CA TOKEN       asks for URL five times a second, for ever
//
// A call is what a program in a pod does: a fresh connection, the token that
// the kubelet keeps in the file TOKEN, trust in the authorities in the file CA.
// Each call is a line of JSON in the container's log.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const usage = "usage: pod pause | pod call URL CA TOKEN"

// said is one call.
type said struct {
	Status int `json:"status,omitempty"`
	// Who answered: the subject of the certificate, and hublet's own header.
	Subject string `json:"subject,omitempty"`
	Source  string `json:"source,omitempty"`
	// Of the body, so that "the same object" can be told.
	Sum string `json:"sum,omitempty"`
	// Why there was no answer.
	Error string `json:"error,omitempty"`
	// Until the whole body was here.
	Milliseconds int64 `json:"ms"`
}

func main() {
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "pause":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
		<-stop
	case len(args) == 4 && args[0] == "call":
		if err := call(args[1], args[2], args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "call:", err)
			os.Exit(1)
		}
	case len(args) == 1 && (args[0] == "-h" || args[0] == "--help"):
		fmt.Println(usage)
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
}

func call(url, caFile, tokenFile string) error {
	bundle, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(bundle) {
		return fmt.Errorf("no certificate in %s", caFile)
	}
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: trusted},
		},
	}
	// As PID 1 of the container it would not end by a signal without a handler.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	lines := json.NewEncoder(os.Stdout)
	for {
		begin := time.Now()
		line := once(client, url, tokenFile)
		line.Milliseconds = time.Since(begin).Milliseconds()
		if err := lines.Encode(line); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func once(client *http.Client, url, tokenFile string) said {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return said{Error: err.Error()}
	}
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return said{Error: err.Error()}
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	answer, err := client.Do(request)
	if err != nil {
		return said{Error: err.Error()}
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return said{Error: err.Error()}
	}
	sum := sha256.Sum256(body)
	return said{
		Status:  answer.StatusCode,
		Subject: answer.TLS.PeerCertificates[0].Subject.String(),
		Source:  answer.Header.Get("X-Hublet-Source"),
		Sum:     hex.EncodeToString(sum[:8]),
	}
}
