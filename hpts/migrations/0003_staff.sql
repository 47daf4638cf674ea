-- Rule: hpts_app binds people to tenants and keeps count of failed sign-ins and of second factors; hpts_readonly sees none of
-- it. A binding is looked up before a tenant is known, so it has no row security, like the clients' table.
-- Undo: the part behind the reverse mark.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    hpts_staff,
    axes_accessattempt,
    axes_accessattemptexpiration,
    axes_accessfailurelog,
    axes_accesslog,
    otp_totp_totpdevice
TO hpts_app;

-- reverse
REVOKE ALL ON
    hpts_staff,
    axes_accessattempt,
    axes_accessattemptexpiration,
    axes_accessfailurelog,
    axes_accesslog,
    otp_totp_totpdevice
FROM hpts_app;
