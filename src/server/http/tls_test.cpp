// HTTPS: a client that trusts the certificate is answered, one that does not is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "checkpoint/test_support.h"
#include "server/http/server.h"

namespace qw::http {
namespace {

namespace asio = boost::asio;
namespace beast_http = boost::beast::http;
using Stream = asio::ssl::stream<asio::ip::tcp::socket>;

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

/// A key on P-256 and a certificate that it signed itself, for "localhost", valid for an hour.
void write_certificate(const std::string& certificate_path, const std::string& key_path) {
  const Owned<EVP_PKEY> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
  const Owned<X509> certificate(X509_new(), X509_free);
  X509* x = certificate.get();
  X509_set_version(x, X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
  X509_gmtime_adj(X509_getm_notBefore(x), -60);
  X509_gmtime_adj(X509_getm_notAfter(x), 3600);
  X509_set_pubkey(x, key.get());
  X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(x, X509_get_subject_name(x));
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, x, x, nullptr, nullptr, 0);
  for (const auto& [id, value] : {std::pair{NID_subject_alt_name, "DNS:localhost"},
                                  std::pair{NID_basic_constraints, "critical,CA:TRUE"}}) {
    const Owned<X509_EXTENSION> extension(X509V3_EXT_conf_nid(nullptr, &context, id, value),
                                          X509_EXTENSION_free);
    ASSERT_NE(extension, nullptr);
    X509_add_ext(x, extension.get(), -1);
  }
  ASSERT_GT(X509_sign(x, key.get(), EVP_sha256()), 0);
  const auto file = [](const std::string& path) {
    return std::unique_ptr<FILE, int (*)(FILE*)>(std::fopen(path.c_str(), "w"), std::fclose);
  };
  ASSERT_EQ(PEM_write_X509(file(certificate_path).get(), x), 1);
  ASSERT_EQ(
      PEM_write_PrivateKey(file(key_path).get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr),
      1);
}

class Tls : public ::testing::Test {
 protected:
  void SetUp() override {
    certificate_ = directory_ / "certificate.pem";
    key_ = directory_ / "key.pem";
    write_certificate(certificate_, key_);
    ServerOptions options;
    options.port = 0;
    options.tls_certificate = certificate_;
    options.tls_key = key_;
    server_ = std::make_unique<Server>(options, [](const std::shared_ptr<Exchange>& exchange) {
      exchange->respond({200, "text/plain", {}, "hello " + exchange->request().path});
    });
    thread_ = std::thread([this] { server_->run(); });
  }
  void TearDown() override {
    server_->stop();
    thread_.join();
  }
  /// The body of GET `path` for a client that trusts `authority` and expects `host`; throws what
  /// TLS has to say.
  std::string get(asio::ssl::context& trust, const std::string& host, const std::string& path) {
    asio::io_context io;
    Stream stream(io, trust);
    stream.set_verify_mode(asio::ssl::verify_peer);
    stream.set_verify_callback(asio::ssl::host_name_verification(host));
    stream.next_layer().connect({asio::ip::make_address("127.0.0.1"), server_->port()});
    stream.handshake(Stream::client);
    beast_http::request<beast_http::empty_body> request(beast_http::verb::get, path, 11);
    request.set(beast_http::field::host, host);
    beast_http::write(stream, request);
    boost::beast::flat_buffer buffer;
    beast_http::response<beast_http::string_body> response;
    beast_http::read(stream, buffer, response);
    EXPECT_EQ(response.result_int(), 200u);
    return response.body();
  }
  asio::ssl::context trusting(asio::ssl::context::method method = asio::ssl::context::tls_client) {
    asio::ssl::context context(method);
    context.load_verify_file(certificate_);
    return context;
  }

  TempDir directory_;
  std::string certificate_, key_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

TEST_F(Tls, AnswersWhoTrustsTheCertificate) {
  asio::ssl::context trust = trusting();
  EXPECT_EQ(get(trust, "localhost", "/a"), "hello /a");
  EXPECT_EQ(get(trust, "localhost", "/b"), "hello /b");
}

TEST_F(Tls, IsRefusedByWhoDoesNotAndGoesOn) {
  asio::ssl::context nobody(asio::ssl::context::tls_client), trust = trusting();
  EXPECT_THROW(get(nobody, "localhost", "/"), boost::system::system_error);
  EXPECT_THROW(get(trust, "elsewhere", "/"), boost::system::system_error);
  EXPECT_EQ(get(trust, "localhost", "/c"), "hello /c");
}

TEST_F(Tls, RefusesOldVersionsAndPlainText) {
  asio::ssl::context old = trusting();
  SSL_CTX_set_max_proto_version(old.native_handle(), TLS1_1_VERSION);
  EXPECT_THROW(get(old, "localhost", "/"), boost::system::system_error);
  asio::io_context io;
  asio::ip::tcp::socket plain(io);
  plain.connect({asio::ip::make_address("127.0.0.1"), server_->port()});
  asio::write(plain, asio::buffer(std::string("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")));
  std::string answer(64, '\0');
  boost::system::error_code error;
  const size_t n = asio::read(plain, asio::buffer(answer), error);
  EXPECT_THAT(answer.substr(0, n), ::testing::Not(::testing::HasSubstr("HTTP/1.1")));
  asio::ssl::context trust = trusting();
  EXPECT_EQ(get(trust, "localhost", "/d"), "hello /d");
}

}  // namespace
}  // namespace qw::http
